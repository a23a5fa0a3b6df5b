"""The ASGI application round an answerer: GET / is the page, POST /predict takes a picture.

Devices do one thing at a time, so that answers are computed by one thread, one after another.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from heatmap.errors import UserError
from heatmap.serving.answers import Question

PAGE = pathlib.Path(__file__).with_name("page.html")

_ARRIVING = 8  # uploads on their way to one that waits; slow ones keep out only their like


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
      megabytes: of an upload.
      seconds: until an upload has arrived, and until an answer has been computed.
      waiting: uploads that have arrived and are not answered; more are told to come back.
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


def application(answer: Callable[[Question], dict[str, Any]], limits: Limits) -> Starlette:
    """Builds the application.

    Args:
      answer: to a question, in a thread of its own; a UserError is told to whoever asked.
      limits: of a request.
    """
    desk = Desk(answer, limits)
    return Starlette(
        routes=[Route("/", _page), Route("/predict", desk.predict, methods=["POST"])],
        exception_handlers={Refusal: _refused, Exception: _failed},
        lifespan=desk.open,
    )


async def _page(_: Request) -> Response:
    return HTMLResponse(PAGE.read_text())


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)  # as registered
    return JSONResponse({"error": str(refusal)}, refusal.status)


async def _failed(_: Request, error: Exception) -> Response:
    del error  # it is in the server's log
    return JSONResponse({"error": "The server failed; its log says why."}, 500)


class Desk:
    """Takes uploads in, and has them answered one after another."""

    def __init__(self, answer: Callable[[Question], dict[str, Any]], limits: Limits):
        self._answer, self._limits = answer, limits
        self._arriving = self._waiting = 0
        self._worker: ThreadPoolExecutor

    @contextlib.asynccontextmanager
    async def open(self, _: Starlette):
        """Works while the server is up."""
        self._worker = ThreadPoolExecutor(1)
        yield
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def predict(self, request: Request) -> Response:
        """Answers a request whose body is a picture file."""
        upload = await self._received(request)
        query = request.query_params
        question = Question(upload, query.get("px_per_cm", ""), query.get("box", ""))
        if self._waiting >= self._limits.waiting:
            raise _busy()
        work = self._worker.submit(self._answer, question)
        self._waiting += 1
        # Not when the answer is given up: a thread that computes still takes its turn.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        try:
            told = await asyncio.wait_for(asyncio.wrap_future(work), self._limits.seconds)
        except UserError as error:
            raise Refusal(422, str(error)) from error
        except TimeoutError as error:
            raise Refusal(504, f"No answer in {self._limits.seconds:g} seconds.") from error
        return JSONResponse(told)

    def _done(self) -> None:
        self._waiting -= 1

    async def _received(self, request: Request) -> bytes:
        if self._arriving >= _ARRIVING * self._limits.waiting:  # each may be all in memory
            raise _busy()
        self._arriving += 1
        try:
            upload = await asyncio.wait_for(self._body(request), self._limits.seconds)
        except ClientDisconnect as error:  # there is no one left to read it
            raise Refusal(400, "The upload was broken off.") from error
        except TimeoutError as error:
            raise Refusal(408, f"The upload took over {self._limits.seconds:g} seconds.") from error
        finally:
            self._arriving -= 1
        if not upload:
            raise Refusal(400, "The request has no body; send a picture file as its body.")
        return upload

    async def _body(self, request: Request) -> bytes:
        megabytes = self._limits.megabytes
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > int(megabytes * 1e6):
                raise Refusal(413, f"The upload is larger than {megabytes:g} MB; shrink it.")
            parts.append(part)
        return b"".join(parts)


def _busy() -> Refusal:
    return Refusal(503, "Too many requests are waiting; come back in a few seconds.")
