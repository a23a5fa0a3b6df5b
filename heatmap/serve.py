"""Answers over HTTP: a photograph in, points and lengths with their intervals out.

python -m heatmap.serve --workdir=runs/mine [--port=8000]
curl --data-binary @photo.jpg 'localhost:8000/predict?px_per_cm=212&box=10,20,200,180'

http://localhost:8000 has a page to drop a photograph on. Needs `pip install -e '.[serve]'`. The
server is for one machine or a trusted network: it knows no users and no encryption.
"""

import argparse
import os
import socket

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
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free")
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
    with _bound(options.host, options.port) as place:
        compilation.keep()
        model = predictor.open_all(options.workdir, options.flip)
        answerer = answers.Answerer(model, options.workdir[0], options.measure)
        answerer.warm_up()
        limits = http.Limits(options.megabytes, options.seconds)
        application = http.application(answerer, limits)
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
        host = f"[{options.host}]" if ":" in options.host else options.host
        port = place.getsockname()[1]
        print(f"serving on http://{host}:{port} (Ctrl-C ends it)", flush=True)
        server.run(sockets=[place])


def _bound(host: str, port: int) -> socket.socket:
    """Takes the port, 0 for any that is free, before seconds are spent on the models.

    Nobody can connect before the server listens to it.
    """
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # where it is free again as soon as a server has ended
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise UserError(
            f"No server on {host}:{port} ({error.strerror}); choose --port, or --host."
        ) from error
    return place


if __name__ == "__main__":
    guard(main)
