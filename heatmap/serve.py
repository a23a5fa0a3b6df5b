"""Answers over HTTP: a photograph in, points and lengths with their intervals out.

python -m heatmap.serve --workdir=runs/mine [--port=8000]
curl --data-binary @photo.jpg 'localhost:8000/predict?px_per_cm=212&box=10,20,200,180'

http://localhost:8000 has a page to drop a photograph on. Needs `pip install -e '.[serve]'`. The
server is for one machine or a trusted network: it knows no users and no encryption.
"""

import argparse

from heatmap import command_line, compilation
from heatmap.errors import UserError, guard
from heatmap.inference import lengths, predictor
from heatmap.serving import answers

_MEGABYTES, _SECONDS = 20.0, 30.0


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, compiles and serves until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m heatmap.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_models(parser)
    lengths.add_flag(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--megabytes", type=float, default=_MEGABYTES, help="of an upload")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="for an answer")
    options = parser.parse_args(arguments)
    try:
        import uvicorn

        from heatmap.serving import http
    except ImportError as error:
        raise UserError("A server needs pip install -e '.[serve]'.") from error
    if not (options.megabytes > 0 and options.seconds > 0 and 0 <= options.port < 65536):
        raise UserError("--megabytes and --seconds are positive, and --port is below 65536.")
    compilation.keep()
    model = predictor.open_all(options.workdir, options.flip)
    answerer = answers.Answerer(model, options.workdir[0], options.measure)
    answerer.warm_up()
    limits = http.Limits(options.megabytes, options.seconds)
    server = uvicorn.Server(
        uvicorn.Config(
            http.application(answerer, limits),
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
