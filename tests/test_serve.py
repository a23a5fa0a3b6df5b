"""The server: answers as heatmap.predict, refuses in sentences, and stays up."""

import concurrent.futures
import contextlib
import io
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from heatmap import predict, serve
from heatmap.inference import predictor
from heatmap.inference.scales import Scales
from heatmap.inference.tables import Meaning
from heatmap.train import train
from launch.jobs import ROOT
from tests import browser
from tests.helpers import make_config, properties
from tests.test_predict import TINY

LIMITS = serve.Limits(megabytes=0.5, seconds=20.0, waiting=4)


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet"
    settings = {"data.measurements": (("apart", "bright", "dim"),), "data.root": str(tiny_root)}
    train(make_config(**{**TINY, **settings, "train.steps": 2}), folder)
    return folder


@pytest.fixture(scope="module")
def application(run):
    model = predictor.open_all([run])
    serve.warm_up(model)
    return serve.application(model, Meaning(model.points, model.config, None, Scales()), LIMITS)


def test_both_cores_of_a_cpu_answer(run, monkeypatch):
    class Divided(Exception):
        pass

    def divide(batch_size):
        raise Divided(batch_size)

    monkeypatch.setattr(serve.state, "divide_cpu", divide)
    with pytest.raises(Divided, match=f"^{make_config().eval.batch_size}$"):
        serve.main([f"--workdir={run}"])


@pytest.fixture(scope="module")
def client(application):
    with TestClient(application) as client:
        yield client


@pytest.fixture(scope="module")
def photograph(tiny_root):
    return (tiny_root / "test" / "000.png").read_bytes()


def test_it_answers_as_predict_does(client, run, tiny_root, tmp_path, photograph):
    predict.main([f"--workdir={run}", str(tiny_root / "test" / "000.png"), f"--out={tmp_path}"])
    expected = pq.read_table(tmp_path / "points.parquet").to_pandas()
    told = client.post("/predict?px_per_cm=20", content=photograph)
    assert told.status_code == 200
    found = told.json()
    assert (found["width"], found["height"]) == (32, 32)
    assert [row["point"] for row in found["points"]] == ["bright", "dim"]
    np.testing.assert_allclose(
        [[row["x"], row["y"]] for row in found["points"]], expected[["x", "y"]], atol=1e-4
    )
    (length,) = found["lengths"]
    assert length["cm"] == pytest.approx(length["px"] / 20)


def test_what_is_wrong_is_told(client, photograph):
    big = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)).save(
        big, "PNG"
    )
    for body, query, status, reason in [
        (b"", "", 400, "has no body"),
        (b"no picture", "", 422, "The upload is not PNG"),
        (photograph[:100], "", 422, "The upload cannot be read"),
        (big.getvalue(), "", 413, "larger than 0.5 MB"),
        (photograph, "?px_per_cm=-1", 422, "positive number"),
    ]:
        told = client.post("/predict" + query, content=body)
        assert told.status_code == status
        assert reason in told.json()["error"]
    assert client.get("/predict").status_code == 405


@given(st.data())
@properties
def test_damaged_uploads_are_refused_or_read(client, photograph, data):
    """Bytes of a picture changed, cut or doubled at random."""
    body = bytearray(photograph)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        body = body or bytearray(b"x")
    told = client.post("/predict", content=bytes(body))
    assert told.status_code in (200, 422)
    assert ("error" in told.json()) == (told.status_code == 422)


@contextlib.contextmanager
def serving(application):
    """A real server on a free port."""
    config = uvicorn.Config(application, port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_under_load_every_request_is_answered(application, photograph):
    """Good and bad uploads at once: each gets its answer, or is told to come back."""
    bodies = [photograph, b"no picture", photograph[:150], b"\xff\xd8\xff" + b"0" * 1000] * 15

    with serving(application) as address, concurrent.futures.ThreadPoolExecutor(12) as pool:

        def ask(body):
            return httpx.post(f"{address}/predict", content=body, timeout=60)

        told = list(pool.map(ask, bodies))
        for body, reply in zip(bodies, told, strict=True):
            assert reply.status_code in ((200, 503) if body == photograph else (422, 503))
        assert any(reply.status_code == 200 for reply in told)
        assert ask(photograph).status_code == 200  # and it is still there


def test_an_upload_that_does_not_come_is_given_up(run):
    model = predictor.open_all([run])
    meaning = Meaning(model.points, model.config, None, Scales())
    brief = serve.application(model, meaning, serve.Limits(seconds=0.5))
    with serving(brief) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
            connection.sendall(head)
            connection.settimeout(30)
            assert b" 408 " in connection.recv(1000)


def test_the_command_says_what_is_wrong(run):
    def told(*flags):
        command = [sys.executable, "-m", "heatmap.serve", f"--workdir={run}", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = told(f"--port={taken.getsockname()[1]}")
    assert done.returncode == 2
    assert "choose --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_photograph_is_dropped_on_the_page(application, tiny_root):
    with browser.launched() as chromium, serving(application) as address:
        page = chromium.new_page()
        page.set_default_timeout(browser.PATIENCE)
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.set_input_files("#file", tiny_root / "test" / "000.png")
        page.wait_for_function("document.querySelectorAll('table').length == 2")
        assert "2 points in a photograph of 32 × 32" in page.inner_text("#said")
        assert page.inner_text("table >> nth=0").count("\n") >= 2
        assert page.evaluate("document.getElementById('canvas').width") == 32
        drawn = page.evaluate(
            "Array.from(document.getElementById('canvas').getContext('2d')"
            ".getImageData(0, 0, 32, 32).data)"
        )
        pixels = np.array(drawn).reshape(32, 32, 4)[..., :3]
        assert (pixels.max(axis=-1) - pixels.min(axis=-1) > 40).any()  # colour on a grey picture
        assert said == []
        bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"no picture"}
        page.set_input_files("#file", files=[bad])
        page.wait_for_selector("#said.wrong")
        assert "The upload is not PNG" in page.inner_text("#said")
