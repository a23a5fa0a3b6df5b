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
from heatmap.errors import UserError
from heatmap.inference import predictor
from heatmap.serving import answers, http
from heatmap.serving.answers import Answerer, Question
from heatmap.train import train
from launch.jobs import ROOT
from tests import browser
from tests.helpers import TINY, make_config, properties
from tests.test_predict import write_boxes

LIMITS = http.Limits(megabytes=0.5, seconds=20.0, waiting=4)


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet"
    settings = {"data.measurements": (("apart", "bright", "dim"),), "data.root": str(tiny_root)}
    train(make_config(**{**TINY, **settings, "train.steps": 2}), folder)
    return folder


@pytest.fixture(scope="module")
def application(run):
    answerer = Answerer(predictor.open_all([run]))
    answerer.warm_up()
    return http.application(answerer, LIMITS)


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


def test_lengths_that_were_named_are_answered(run, photograph):
    model = predictor.open_all([run])
    apart, back = Answerer(model, run, ["back=1-0"])(Question(photograph))["lengths"]
    assert (apart["measurement"], back["measurement"]) == ("apart", "back")
    assert apart["px"] == back["px"] > 0
    with pytest.raises(UserError, match="two different points"):
        Answerer(model, run, ["back=1"])


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
        (photograph, "?box=1,2,3", 422, "must be x0,y0,x1,y1"),
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


def connected(address):
    """Begins an upload of which the rest does not come."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    connection.settimeout(30)
    return connection


def test_an_upload_that_does_not_come_is_given_up():
    brief = http.application(lambda _: {}, http.Limits(seconds=0.5))
    with serving(brief) as address, connected(address) as connection:
        assert b" 408 " in connection.recv(1000)


def test_slow_uploads_keep_no_one_waiting():
    """Only what has arrived waits for an answer; of the slow there may be many, not any number."""
    answered = http.application(lambda asked: {"size": len(asked.upload)}, http.Limits(waiting=2))
    with serving(answered) as address, contextlib.ExitStack() as slow:
        for _ in range(15):
            slow.enter_context(connected(address))
        reply = httpx.post(f"{address}/predict", content=b"1234", timeout=20)
        assert reply.json() == {"size": 4}
        for _ in range(2):
            slow.enter_context(connected(address))
        deadline = time.monotonic() + 20  # until the server has seen the last of them
        while time.monotonic() < deadline:
            reply = httpx.post(f"{address}/predict", content=b"1234", timeout=20)
            if reply.status_code == 503:
                break
        assert reply.status_code == 503


def test_more_than_can_wait_are_told_to_come_back():
    release = threading.Event()

    def answer(_):
        release.wait(30)
        return {}

    limits = http.Limits(waiting=2)
    server = serving(http.application(answer, limits))
    with server as address, concurrent.futures.ThreadPoolExecutor(3) as pool:

        def ask(_):
            status = httpx.post(f"{address}/predict", content=b"1", timeout=60).status_code
            if status == 503:
                release.set()  # the other two are waiting
            return status

        assert sorted(pool.map(ask, range(3))) == [200, 200, 503]


def test_one_photograph_takes_the_smallest_batch(run, photograph, monkeypatch):
    model = predictor.open_all([run])
    sizes = []
    step = model._step
    monkeypatch.setattr(
        model, "_step", lambda w, images: (sizes.append(len(images)), step(w, images))[1]
    )
    answerer = Answerer(model)
    answerer.warm_up()
    answerer(Question(photograph))
    assert sizes == [model.mesh.size] * 2
    assert model.config.eval.batch_size > model.mesh.size


@pytest.fixture(scope="module")
def cropped(tiny_root, tmp_path_factory):
    """A run of crops by boxes."""
    folder = tmp_path_factory.mktemp("runs") / "cropped"
    settings = {"data.crop": "box", "data.root": str(tiny_root), "train.steps": 2}
    train(make_config(**{**TINY, **settings}), folder)
    return folder


def test_a_run_of_crops_takes_a_box_or_says_that_it_lacks_one(cropped, tiny_root, tmp_path, capsys):
    picture = tiny_root / "test" / "000.png"
    answer = Answerer(predictor.open_all([cropped]))
    boxed = answer(Question(picture.read_bytes(), box="4,5,24,28"))
    assert boxed["notes"] == []
    write_boxes(tmp_path / "boxes.json", ["000.png"], [(0, [4, 5, 20, 23])])
    command = [f"--workdir={cropped}", str(picture), f"--out={tmp_path / 'boxed'}"]
    predict.main([*command, f"--boxes={tmp_path / 'boxes.json'}"])
    expected = pq.read_table(tmp_path / "boxed" / "points.parquet").to_pandas()
    places = [[row["x"], row["y"]] for row in boxed["points"]]
    np.testing.assert_allclose(places, expected[["x", "y"]], atol=1e-4)
    assert "without any" not in capsys.readouterr().err
    (note,) = answer(Question(picture.read_bytes()))["notes"]
    predict.main([*command[:2], f"--out={tmp_path / 'whole'}"])
    assert note in capsys.readouterr().err
    assert "given whole pictures without any" in note


def test_a_box_that_is_not_used_is_told(run, photograph):
    answer = Answerer(predictor.open_all([run]))
    boxed, whole = answer(Question(photograph, box="1,2,20,30")), answer(Question(photograph))
    assert "shown the whole picture" in boxed["notes"][0]
    assert whole["notes"] == []
    assert whole["points"] == boxed["points"]


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "a,b,c,d", "5,5,5,9", "9,9,5,5", "-1,0,5,5", "0,0,33,9", "nan,0,1,1"]
)
def test_boxes_that_make_no_sense_are_refused(text):
    assert answers.parse_box("0,0,32,20", (20, 32)).tolist() == [-0.5, -0.5, 31.5, 19.5]
    with pytest.raises(UserError, match="inside the picture of 32x20"):
        answers.parse_box(text, (20, 32))


def test_a_port_that_is_taken_is_said_before_models_are_opened(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = [f"--workdir={tmp_path / 'gone'}", f"--port={taken.getsockname()[1]}"]
        done = subprocess.run(
            [sys.executable, "-m", "heatmap.serve", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert "choose --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_is_not_here_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"No server on 192\.0\.2\.1:0 \(.*--host"):
        serve.main([f"--workdir={tmp_path}", "--host=192.0.2.1", "--port=0"])


def test_a_photograph_is_dropped_on_the_page(application, tiny_root):
    """And one with a box that the model has no use for."""
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
        page.fill("#box", "1,2,30,31")
        page.set_input_files("#file", tiny_root / "test" / "001.png")
        page.wait_for_function("document.getElementById('said').textContent.includes('crops')")
        assert said == []
        page.fill("#box", "")
        bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"no picture"}
        page.set_input_files("#file", files=[bad])
        page.wait_for_selector("#said.wrong")
        assert "The upload is not PNG" in page.inner_text("#said")
