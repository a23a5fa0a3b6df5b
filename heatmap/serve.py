"""Answers over HTTP: a photograph in, points and lengths with their intervals out.

python -m heatmap.serve --workdir=runs/mine [--port=8000]
curl --data-binary @photo.jpg 'localhost:8000/predict?px_per_cm=212'

http://localhost:8000 has a page to drop a photograph on. Needs `pip install -e '.[serve]'`. The
server is for one machine or a trusted network: it knows no users and no encryption.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import math
import pathlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from heatmap import compilation, state, workdir
from heatmap.errors import UserError, guard
from heatmap.inference import batches, predictor, scales, tables, uncertainty
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor
from heatmap.inference.scales import Scales
from heatmap.inference.tables import Meaning

PAGE = pathlib.Path(__file__).parent / "serving" / "page.html"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
      megabytes: of an upload.
      seconds: until an upload has arrived, and until an answer has been computed.
      waiting: requests at a time; more are told to come back.
    """

    megabytes: float = 20.0
    seconds: float = 30.0
    waiting: int = 8


class Refusal(Exception):
    """An answer that is no prediction.

    Attributes:
      status: of HTTP.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def answer(model: Predictor, meaning: Meaning, upload: bytes) -> dict[str, Any]:
    """Predicts one picture.

    Args:
      model: that answers.
      meaning: of its points.
      upload: the bytes of a picture file.

    Returns:
      What JSON can hold: width, height, points and lengths as in the tables of heatmap.predict, and
      the skeleton; what is not known is null.

    Raises:
      UserError: if the bytes are no picture that can be read.
    """
    from input_pipeline import sources

    with tempfile.NamedTemporaryFile(prefix="upload-") as file:
        file.write(upload)
        file.flush()
        path = pathlib.Path(file.name)
        try:
            pixels = sources.read_picture(path, model.config.data.max_megapixels)
        except UserError as error:
            raise UserError(str(error).replace(f"The picture {path}", "The upload")) from error
    source = sources.Source("upload", path, is_video=False, stamp="")
    picture = sources.prepared(source, sources.WHOLE, pixels, model.config, None)
    rows = [(picture, item) for item in picture.items]
    found = batches.finish(model, [batches.start(model, rows)])
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "points": _rows(tables.of_points(found, meaning)),
        "lengths": _rows(tables.of_lengths(found, meaning)) if meaning.points.measurements else [],
        "skeleton": [list(pair) for pair in meaning.points.skeleton],
    }


def _rows(columns: tables.Columns) -> list[dict[str, Any]]:
    """Turns columns into records, without what only tells pictures apart."""
    kept = {n: v for n, v in columns.items() if n not in ("source", "frame", "instance")}
    lists = {name: np.asarray(values).tolist() for name, values in kept.items()}
    return [
        {name: _known(value) for name, value in zip(lists, row, strict=True)}
        for row in zip(*lists.values(), strict=True)
    ]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def application(model: Predictor, meaning: Meaning, limits: Limits) -> Any:
    """Builds the ASGI application: GET / is the page, POST /predict takes a picture as its body."""
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    worker: ThreadPoolExecutor  # one thread, as the devices do one thing at a time
    waiting = 0

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_text())

    async def body(request: Request) -> bytes:
        most = int(limits.megabytes * 1e6)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Refusal(413, f"The upload is larger than {limits.megabytes:g} MB; shrink it.")
            parts.append(part)
        return b"".join(parts)

    def done() -> None:
        nonlocal waiting
        waiting -= 1

    async def received(request: Request) -> bytes:
        try:
            upload = await asyncio.wait_for(body(request), limits.seconds)
        except ClientDisconnect as error:  # there is no one left to read it
            raise Refusal(400, "The upload was broken off.") from error
        except TimeoutError as error:
            raise Refusal(408, f"The upload took over {limits.seconds:g} seconds.") from error
        if not upload:
            raise Refusal(400, "The request has no body; send a picture file as its body.")
        return upload

    async def told(request: Request) -> Response:
        nonlocal waiting
        if waiting >= limits.waiting:
            raise Refusal(503, "Too many requests are waiting; come back in a few seconds.")
        waiting += 1
        try:
            upload = await received(request)
            scale = request.query_params.get("px_per_cm", "")
            work = worker.submit(_answer_with_scale, model, meaning, scale, upload)
        except BaseException:
            done()
            raise
        # Not when the answer is given up: a thread that computes still takes its turn.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(done))
        try:
            return JSONResponse(await asyncio.wait_for(asyncio.wrap_future(work), limits.seconds))
        except UserError as error:
            raise Refusal(422, str(error)) from error
        except TimeoutError as error:
            raise Refusal(504, f"No answer in {limits.seconds:g} seconds.") from error

    async def refused(_: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)  # as registered below
        return JSONResponse({"error": str(refusal)}, refusal.status)

    async def failed(_: Request, error: Exception) -> Response:
        del error  # it is in the server's log
        return JSONResponse({"error": "The server failed; its log says why."}, 500)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette):
        nonlocal worker
        worker = ThreadPoolExecutor(1)
        yield
        worker.shutdown(wait=False, cancel_futures=True)

    routes = [Route("/", page), Route("/predict", told, methods=["POST"])]
    return Starlette(
        routes=routes, exception_handlers={Refusal: refused, Exception: failed}, lifespan=lifespan
    )


def _answer_with_scale(
    model: Predictor, meaning: Meaning, scale: str, upload: bytes
) -> dict[str, Any]:
    """Answers with lengths in centimetres as well, if the request states a scale."""
    if scale:
        meaning = dataclasses.replace(meaning, scales=Scales(everywhere=scales.parse(scale)))
    return answer(model, meaning, upload)


def warm_up(model: Predictor) -> Instances:
    """Compiles before the first request, which else would wait for it."""
    from input_pipeline import sources

    size = model.config.data.image_size
    blank = np.zeros((*size, 3), np.uint8)
    source = sources.Source("blank", pathlib.Path("blank"), is_video=False, stamp="")
    picture = sources.prepared(source, sources.WHOLE, blank, model.config, None)
    rows = [(picture, item) for item in picture.items]
    return batches.finish(model, [batches.start(model, rows)])


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, compiles and serves until it is interrupted."""
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m heatmap.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        action="append",
        required=True,
        help="of a trained run; given again, the models vote",
    )
    parser.add_argument("--flip", action="store_true", help="predict the mirrored picture too")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--megabytes", type=float, default=limits.megabytes, help="of an upload")
    parser.add_argument("--seconds", type=float, default=limits.seconds, help="for an answer")
    options = parser.parse_args(arguments)
    try:
        import starlette  # noqa: F401 - imported where the application is built
        import uvicorn
    except ImportError as error:
        raise UserError("A server needs pip install -e '.[serve]'.") from error
    if not (options.megabytes > 0 and options.seconds > 0 and 0 <= options.port < 65536):
        raise UserError("--megabytes and --seconds are positive, and --port is below 65536.")
    compilation.keep()
    state.divide_cpu(workdir.read_config(options.workdir[0]).eval.batch_size)
    model = predictor.open_all(options.workdir, options.flip)
    calibration = uncertainty.load_for(options.workdir[0], model.identity(), boxed=False)
    meaning = Meaning(model.points, model.config, calibration, Scales())
    warm_up(model)
    limits = dataclasses.replace(limits, megabytes=options.megabytes, seconds=options.seconds)
    server = uvicorn.Server(
        uvicorn.Config(
            application(model, meaning, limits),
            host=options.host,
            port=options.port,
            log_level="warning",
        )
    )
    print(f"serving on http://{options.host}:{options.port} (Ctrl-C ends it)", flush=True)
    try:
        server.run()
    except SystemExit as error:  # uvicorn has said that the port is taken
        raise UserError(f"No server on {options.host}:{options.port}; choose --port.") from error


if __name__ == "__main__":
    guard(main)
