"""python -m heatmap.predict, from files to files, with runs that train in seconds."""

import fractions
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

import input_pipeline
from heatmap import predict
from heatmap.errors import UserError
from heatmap.inference import files
from heatmap.inference import lengths as lengths_lib
from heatmap.keypoints import KeypointSet
from heatmap.train import train
from input_pipeline import video
from launch.jobs import ROOT
from tests.helpers import TINY, make_config
from tests.projects import write_film


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet"
    train(make_config(**TINY, **{"data.root": str(tiny_root)}), folder)
    return folder


@pytest.fixture
def pictures(tiny_root, tmp_path):
    return shutil.copytree(tiny_root / "test", tmp_path / "pictures")


def points(out):
    return pq.read_table(out / "points.parquet").to_pandas()


def spots(frame, size=(48, 64)):
    """A frame with one bright spot, whose column tells the frame's number."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    near = np.exp(-((columns - 10 - 2 * frame) ** 2 + (rows - 24) ** 2) / 8)
    return np.repeat((30 + 200 * near).astype(np.uint8)[..., None], 3, axis=-1)


def test_pictures_are_predicted_as_evaluation_predicts_them(run, pictures, tmp_path, capsys):
    predict.main([f"--workdir={run}", str(pictures), f"--out={tmp_path / 'out'}"])
    found = points(tmp_path / "out")
    scored = pq.read_table(run / "predictions" / "test.parquet").to_pandas()
    assert found["point"].tolist() == scored["point"].tolist()
    assert [name.split("/")[-1] for name in found["source"]] == [
        name.split("/")[-1] for name in scored["id"]
    ]
    np.testing.assert_allclose(found[["x", "y"]], scored[["x", "y"]], atol=1e-4)
    np.testing.assert_allclose(found["score"], scored["score"], atol=1e-6)
    told = capsys.readouterr().out
    assert "no intervals" in told
    table = pd.read_csv(tmp_path / "out" / "points.csv")
    assert table["frame"].eq(-1).all()
    np.testing.assert_allclose(table[["x", "y"]], found[["x", "y"]])


def test_a_second_run_does_only_what_is_missing(run, pictures, tmp_path, monkeypatch):
    names = sorted(path.name for path in pictures.iterdir())
    apart = tmp_path / "apart"
    apart.mkdir()
    (pictures / names[2]).rename(apart / names[2])
    (pictures / names[5]).rename(apart / names[5])
    command = [f"--workdir={run}", str(pictures), f"--out={tmp_path / 'out'}"]
    predict.main(command)
    first = points(tmp_path / "out")
    for path in apart.iterdir():
        path.rename(pictures / path.name)
    read = []
    original = input_pipeline.sources.read_picture
    monkeypatch.setattr(
        input_pipeline.sources,
        "read_picture",
        lambda path, limit: (read.append(path.name), original(path, limit))[1],
    )
    predict.main(command)
    assert sorted(read) == [names[2], names[5]]
    both = points(tmp_path / "out")
    assert both.iloc[: len(first)].equals(first)
    predict.main([f"--workdir={run}", str(pictures), f"--out={tmp_path / 'whole'}"])
    whole = points(tmp_path / "whole").sort_values(["source", "point"], ignore_index=True)
    again = both.sort_values(["source", "point"], ignore_index=True)
    pd.testing.assert_frame_equal(whole, again, rtol=1e-5, atol=1e-5)


def test_a_picture_that_was_replaced_is_predicted_again(run, pictures, tmp_path):
    names = sorted(pictures.iterdir())
    command = [f"--workdir={run}", str(pictures), f"--out={tmp_path / 'out'}"]
    predict.main(command)
    before = points(tmp_path / "out")
    shutil.copyfile(names[1], names[0])
    os.utime(names[0], (1, 1))
    predict.main(command)
    after = points(tmp_path / "out")
    assert len(after) == len(before)

    def of(table, path):
        return table[table["source"] == path.as_posix()][["x", "y"]].to_numpy()

    np.testing.assert_allclose(of(after, names[0]), of(before, names[1]), atol=1e-4)


def test_other_settings_need_another_folder(run, pictures, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    predict.main([f"--workdir={run}", str(pictures), out])
    with pytest.raises(UserError, match="holds predictions of other models"):
        predict.main([f"--workdir={run}", str(pictures), out, "--flip"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="so it is not of ours"):
        predict.main([f"--workdir={run}", str(pictures), f"--out={tmp_path / 'full'}"])


def test_bad_pictures_are_told_and_left_out(run, pictures, tmp_path, capsys):
    good = sorted(pictures.iterdir())
    (pictures / "cut.png").write_bytes(good[0].read_bytes()[:200])
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "text.png").write_text("no picture")
    command = [f"--workdir={run}", str(pictures), f"--out={tmp_path / 'out'}"]
    predict.main(command)
    told = capsys.readouterr()
    assert "3 could not be read" in told.out
    assert "cut.png cannot be read" in told.err
    listed = pd.read_csv(tmp_path / "out" / "problems.csv")
    assert [name.split("/")[-1] for name in listed["source"]] == [
        "cut.png",
        "empty.jpg",
        "text.png",
    ]
    assert points(tmp_path / "out")["source"].nunique() == len(good)
    for name in ("cut.png", "empty.jpg", "text.png"):
        shutil.copyfile(good[0], pictures / name)
    predict.main(command)  # mended, they are done too
    assert not (tmp_path / "out" / "problems.csv").exists()
    assert points(tmp_path / "out")["source"].nunique() == len(good) + 3


def test_nothing_to_predict_is_a_sentence(run, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "bad.png").write_text("no picture")
    for given, message in [
        ("none", "holds no pictures"),
        ("notes.txt", "neither a picture"),
        ("*.jpeg", "no file whose name fits"),
        ("bad.png", "Nothing was predicted"),
    ]:
        with pytest.raises(UserError, match=message):
            predict.main([f"--workdir={run}", str(tmp_path / given), f"--out={tmp_path / 'out'}"])


def test_files_folders_and_globs_name_each_picture_once(pictures):
    for i in (2, 10):
        shutil.copyfile(pictures / "000.png", pictures / f"picture{i}.PNG")
    found, problems = input_pipeline.sources.find([str(pictures / "picture*.PNG"), str(pictures)])
    assert problems == []
    names = [source.path.name for source in found]
    assert names[:2] == ["picture2.PNG", "picture10.PNG"]
    assert sorted(names) == sorted(path.name for path in pictures.iterdir())


def write_boxes(path, pictures, boxes):
    images = [{"id": i, "file_name": name} for i, name in enumerate(pictures)]
    rows = [{"id": n, "image_id": i, "bbox": box} for n, (i, box) in enumerate(boxes)]
    path.write_text(json.dumps({"images": images, "annotations": rows}))


def test_boxes_say_where_instances_are(run, tmp_path, capsys):
    """Two pictures side by side are found as each is by itself, moved."""
    a, b = spots(2, (32, 32)), spots(5, (32, 32))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, pixels in (("a", a), ("b", b), ("both", np.concatenate([a, b], axis=1))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(a).save(folder / "unlisted.png")
    Image.fromarray(a).save(folder / "nobody.png")
    listed = ["both.png", "a.png", "b.png", "nobody.png"]
    # A box is padded by 1.25 when the crop is that of an instance: these make the crop the picture.
    inner = [3.2, 3.2, 25.6, 25.6]
    moved = [35.2, 3.2, 25.6, 25.6]
    boxes = [(0, inner), (0, moved), (1, inner), (2, inner)]
    write_boxes(tmp_path / "boxes.json", listed, boxes)
    out = tmp_path / "out"
    command = [f"--workdir={run}", str(folder), f"--out={out}"]
    command += [f"--boxes={tmp_path / 'boxes.json'}"]
    predict.main(command)
    assert "do not list" in capsys.readouterr().err
    found = points(out)
    found["source"] = [name.split("/")[-1] for name in found["source"]]
    place = found.set_index(["source", "instance"])[["x", "y"]]
    assert set(found["source"]) == {"a.png", "b.png", "both.png"}
    np.testing.assert_allclose(place.loc["both.png", 0], place.loc["a.png", 0], atol=1)
    np.testing.assert_allclose(place.loc["both.png", 1], place.loc["b.png", 0] + [32, 0], atol=1)
    write_boxes(tmp_path / "boxes.json", listed, [(0, [])])
    with pytest.raises(UserError, match="has no 'bbox'"):
        predict.main(command)


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    write_film(path, [spots(i) for i in range(20)])
    return path


def test_frames_are_numbered_as_they_are_shown(film):
    found = list(video.frames(film))
    assert [number for number, _ in found] == list(range(20))
    brightest = [int(pixels[24, :, 0].argmax()) for _, pixels in found]
    np.testing.assert_allclose(brightest, 10 + 2 * np.arange(20), atol=1)
    assert video.count(film) == 20


def test_a_video_is_predicted_as_its_frames_are(run, film, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, pixels in video.frames(film):
        Image.fromarray(pixels).save(frames / f"{number}.png")
    for given, name in ((film, "film"), (frames, "single")):
        predict.main([f"--workdir={run}", str(given), f"--out={tmp_path / name}"])
    of_film, single = points(tmp_path / "film"), points(tmp_path / "single")
    assert of_film["frame"].tolist() == np.repeat(np.arange(20), 2).tolist()
    np.testing.assert_allclose(of_film[["x", "y"]], single[["x", "y"]], atol=1e-4)


def test_a_video_goes_on_at_the_frame_where_it_was_interrupted(run, film, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_BLOCK", 6)
    prepared, count = input_pipeline.sources.prepared, [0]

    def interrupted(source, frame, *others):
        if frame == 15 and not count[0]:
            count[0] = 1
            raise KeyboardInterrupt
        return prepared(source, frame, *others)

    monkeypatch.setattr(input_pipeline.sources, "prepared", interrupted)
    command = [f"--workdir={run}", str(film), f"--out={tmp_path / 'out'}"]
    with pytest.raises(KeyboardInterrupt):
        predict.main(command)
    done = []
    monkeypatch.setattr(
        input_pipeline.sources,
        "prepared",
        lambda source, frame, *others: (done.append(frame), prepared(source, frame, *others))[1],
    )
    predict.main(command)
    assert done == list(range(12, 20))
    assert points(tmp_path / "out")["frame"].tolist() == np.repeat(np.arange(20), 2).tolist()
    done.clear()
    predict.main(command)
    assert done == []


def test_a_part_that_is_gone_is_made_anew(run, film, tmp_path, monkeypatch):
    """And what comes behind it is neither lost nor doubled."""
    monkeypatch.setattr(predict, "_BLOCK", 6)
    command = [f"--workdir={run}", str(film), f"--out={tmp_path / 'out'}"]
    predict.main(command)
    whole = points(tmp_path / "out")
    parts = sorted((tmp_path / "out" / "parts").iterdir())
    assert len(parts) == 4
    parts[1].unlink()
    predict.main(command)
    again = points(tmp_path / "out")
    assert again["frame"].tolist() == whole["frame"].tolist()
    np.testing.assert_allclose(again[["x", "y"]], whole[["x", "y"]], atol=1e-4)
    parts[2].write_bytes(parts[2].read_bytes()[:-9])
    predict.main(command)  # what cannot be opened is as good as gone
    assert points(tmp_path / "out")["frame"].tolist() == whole["frame"].tolist()


def test_a_file_in_the_way_is_told(run, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/inside"):
        with pytest.raises(UserError, match="a file is in the way"):
            predict.main([f"--workdir={run}", str(pictures), f"--out={tmp_path / place}"])


def test_what_was_drawn_is_no_question(run, pictures, tmp_path):
    """Nor is what lies in hidden folders."""
    (pictures / ".thumbs").mkdir()
    shutil.copy(pictures / "000.png", pictures / ".thumbs")
    command = [f"--workdir={run}", str(pictures), f"--out={pictures / 'found'}", "--overlay"]
    predict.main(command)
    predict.main(command)
    assert points(pictures / "found")["source"].nunique() == 6


def test_a_name_of_the_data_keeps_its_meaning(run):
    known = KeypointSet(("a", "b", "c"), measurements=(("length", 0, 1),))
    assert lengths_lib.with_measurements(known, ["length=b-a", "width=1-2"]).measurements == (
        ("length", 1, 0),
        ("width", 1, 2),
    )
    with pytest.raises(UserError, match="gives another meaning to length"):
        lengths_lib.with_measurements(known, ["length=0-2"])


def test_frames_may_have_boxes_of_their_own(run, film, tmp_path):
    """And a box that is no part of its picture is a problem of that picture alone."""
    listed = ["film.mp4", "film.mp4#000003", "film.mp4#000004"]
    all_of_it, left, far = [0, 0, 64, 48], [0, 0, 32, 48], [0, 0, 1e300, 48]
    write_boxes(tmp_path / "boxes.json", listed, [(0, all_of_it), (1, left), (1, left), (2, far)])
    out = tmp_path / "out"
    predict.main(
        [f"--workdir={run}", str(film), f"--out={out}", f"--boxes={tmp_path / 'boxes.json'}"]
    )
    found = points(out).groupby("frame")["instance"].nunique()
    assert found[3] == 2
    assert 4 not in found.index
    assert found.drop(3).eq(1).all()
    assert "far larger" in (out / "problems.csv").read_text()


def test_a_name_that_fits_two_pictures_is_refused(run, pictures, tmp_path):
    other = shutil.copytree(pictures, tmp_path / "other")
    (tmp_path / "scales.csv").write_text("file,px_per_cm\n000.png,20\n")
    command = [f"--workdir={run}", str(pictures), str(other), f"--out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="which may be"):
        predict.main([*command, f"--scales={tmp_path / 'scales.csv'}", "--measure=d=0-1"])


def test_pixels_that_are_not_square_are_refused(tmp_path):
    av = video.library()
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.sample_aspect_ratio = fractions.Fraction(4, 3)
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(spots(i), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(video.Broken, match="not square"):
        list(video.frames(tmp_path / "wide.mp4"))


def test_threads_of_ffmpeg_never_wait_to_log():
    """They would for the interpreter, while it waits for them: see the corpus of tests.fuzzing."""
    assert video.library().logging.get_level() is None


def test_a_broken_video_gives_what_there_is_of_it(run, film, tmp_path, capsys):
    broken, sound = tmp_path / "broken.avi", tmp_path / "no_film.mp4"
    write_film(broken, [spots(i % 20) for i in range(60)])
    broken.write_bytes(broken.read_bytes()[: int(0.7 * broken.stat().st_size)])
    sound.write_bytes(b"no film")
    out = tmp_path / "out"
    predict.main([f"--workdir={run}", str(broken), str(sound), str(film), f"--out={out}"])
    told = capsys.readouterr().err
    assert "no_film.mp4 cannot be decoded" in told
    assert "broken.avi ends after" in told
    found = points(out)
    assert found[found["source"] == film.as_posix()]["frame"].nunique() == 20
    some = found[found["source"] == broken.as_posix()]["frame"].to_numpy()
    assert 0 < len(np.unique(some)) < 60


def test_coco_is_read_back(run, pictures, tmp_path):
    predict.main(
        [f"--workdir={run}", str(pictures), f"--out={tmp_path / 'out'}", "--formats=parquet,coco"]
    )
    folder = tmp_path / "read"
    (folder / "images").mkdir(parents=True)
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    for image in content["images"]:  # absolute, as they were given
        shutil.copy(image["file_name"], folder / "images")
        image["file_name"] = image["file_name"].split("/")[-1]
    (folder / "annotations.json").write_text(json.dumps(content))
    config = make_config(**{"data.name": "coco", "data.root": str(folder)})
    records = input_pipeline.read(config.data)
    found = points(tmp_path / "out")
    assert records.points.names == ("bright", "dim")
    np.testing.assert_allclose(records.keypoints.reshape(-1, 2), found[["x", "y"]])
    np.testing.assert_allclose(records.boxes, np.tile([-0.5, -0.5, 31.5, 31.5], (6, 1)))


def test_deeplabcut_tables_hold_the_same(run, film, pictures, tmp_path):
    formats = "--formats=parquet,deeplabcut,deeplabcut_h5"
    out = tmp_path / "out"
    predict.main([f"--workdir={run}", str(film), str(pictures), f"--out={out}", formats])
    found = points(out)
    table = pd.read_csv(out / "deeplabcut" / "film.csv", header=[0, 1, 2], index_col=0)
    assert table.index.tolist() == list(range(20))
    mine = found[found["source"] == film.as_posix()]
    bright = mine[mine["point"] == "bright"]
    np.testing.assert_allclose(table[files.SCORER]["bright"][["x", "y"]], bright[["x", "y"]])
    h5 = pd.read_hdf(out / "deeplabcut" / "film.h5", "df_with_missing")
    assert h5.columns.names == ["scorer", "bodyparts", "coords"]
    np.testing.assert_allclose(h5.to_numpy(), table.to_numpy())
    assert len(pd.read_csv(out / "deeplabcut" / "pictures.csv", header=[0, 1, 2])) == 6


def test_lengths_and_scales(run, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    table = tmp_path / "scales.csv"
    table.write_text("file,px_per_cm,px_per_cm_sd\n000.png,20,0.5\npictures/001.png,40,\n")
    flags = ["--measure=apart=bright-dim", "--measure=same=0-1", f"--scales={table}"]
    predict.main([f"--workdir={run}", str(pictures), f"--out={out}", *flags])
    found = points(out)
    lengths = pq.read_table(out / "lengths.parquet").to_pandas()
    assert lengths["measurement"].tolist() == ["apart", "same"] * 6
    ends = found[["x", "y"]].to_numpy().reshape(-1, 2, 2)
    apart = np.hypot(*(ends[:, 1] - ends[:, 0]).T)
    np.testing.assert_allclose(lengths["px"], np.repeat(apart, 2))
    np.testing.assert_allclose(lengths["cm"][:4], np.repeat(apart[:2] / [20, 40], 2))
    np.testing.assert_allclose(
        lengths["cm_scale_sd"][:4], np.repeat(apart[:2] / [20, 40] * [0.5 / 20, np.nan], 2)
    )
    assert lengths["cm"][4:].isna().all()
    told = capsys.readouterr().out
    assert re.search(r"no centimetres for 4 of 6 inputs, such as \S+/002\.png, which", told)
    predict.main([f"--workdir={run}", str(pictures), f"--out={out}", *flags, "--px_per_cm=9"])
    assert "no centimetres" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--measure=apart=bright", "must name two different points"),
        ("--measure=a/b=0-1", "without a slash"),
        ("--measure=same=1-1", "must name two different points"),
        ("--measure=same=dim-1", "must name two different points"),
        ("--px_per_cm=-3", "one positive number"),
        ("--scale_bar=0-1", "must name two different points"),
        ("--scale_bar=0-0=1", "must name two different points"),
        ("--scale_bar=0-1=x", "must end in centimetres"),
        ("--scales=missing.csv", "cannot be read"),
        ("--formats=xls", "--formats='xls' is not known"),
        ("--boxes=missing.json", "There is no file"),
    ],
)
def test_slips_are_sentences(run, pictures, tmp_path, flag, message):
    with pytest.raises(UserError, match=message):
        predict.main([f"--workdir={run}", str(pictures), f"--out={tmp_path / 'out'}", flag])


def test_overlays_show_where_points_are(run, pictures, film, tmp_path):
    out = tmp_path / "out"
    command = [f"--workdir={run}", str(pictures), str(film), f"--out={out}", "--overlay"]
    predict.main(command)
    found = points(out)
    drawn = np.asarray(Image.open(out / "overlay" / "pictures" / "000.png")).astype(int)
    plain = np.asarray(Image.open(pictures / "000.png").convert("RGB")).astype(int)
    changed = np.abs(drawn - plain).sum(axis=-1) > 60
    first = found[found["source"] == (pictures / "000.png").as_posix()]
    for x, y in first[["x", "y"]].to_numpy().clip(0, 31):
        assert changed[round(y), round(x)]
    assert not changed.all()
    assert len(list(video.frames(out / "overlay" / "film.mp4"))) == 20


def test_the_command_ends_with_a_sentence_and_code_2(tmp_path):
    command = [sys.executable, "-m", "heatmap.predict", f"--workdir={tmp_path}", str(tmp_path)]
    told = subprocess.run(
        [*command, f"--out={tmp_path / 'out'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert "holds no" in told.stderr


@pytest.mark.parametrize("name", ["film.mp4", "film.mp4#000003"])
def test_deeplabcut_has_no_room_for_several_which_is_said_first(
    run, film, tmp_path, monkeypatch, name
):
    boxes = [(0, [0, 0, 64, 48]), (1, [0, 0, 32, 48]), (1, [32, 0, 32, 48])]
    write_boxes(tmp_path / "boxes.json", ["other.mp4", name], boxes)
    monkeypatch.setattr(predict, "predict", lambda *_: pytest.fail("predicted"))
    command = [f"--workdir={run}", str(film), f"--out={tmp_path / 'out'}", "--formats=deeplabcut"]
    with pytest.raises(UserError, match=f"{name} has several instances"):
        predict.main([*command, f"--boxes={tmp_path / 'boxes.json'}"])
    files.check_instances(["deeplabcut"], [], {name: [None, None]})  # no source of ours
    files.check_instances(["csv"], [], {name: [None, None]})


@pytest.mark.slow
def test_what_a_kill_left_beside_deeplabcut_tables_goes(run, film, tmp_path):
    code = "import os, sys; from heatmap import predict; from heatmap.inference import files\n"
    code += "files._append_deeplabcut = lambda *_: os._exit(9)\npredict.main(sys.argv[1:])"
    command = [f"--workdir={run}", str(film), f"--out={tmp_path}/out", "--formats=deeplabcut"]
    killed = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True)
    assert killed.returncode == 9
    folder = tmp_path / "out" / "deeplabcut"
    assert len(list(folder.iterdir())) == 1
    predict.main(command)
    assert [path.name for path in folder.iterdir()] == ["film.csv"]


@pytest.mark.slow
def test_memory_does_not_grow_with_a_video(run, tmp_path):
    """The peak of a process after 1,000 frames, and after 10,000; -s shows them."""
    peaks = []
    for frames in (1_000, 10_000):
        film = tmp_path / f"{frames}.mp4"
        write_film(film, [spots(i % 20) for i in range(200)] * (frames // 200))
        command = [sys.executable, "-m", "heatmap.predict", f"--workdir={run}", str(film)]
        child = subprocess.Popen([*command, f"--out={tmp_path / str(frames)}"], cwd=ROOT)
        _, status, used = os.wait4(child.pid, 0)
        assert status == 0
        peaks.append(used.ru_maxrss / 1024)
        assert len(points(tmp_path / str(frames))) == 2 * frames
        print(f"peak after {frames:,} frames: {peaks[-1]:.0f} MB")
    assert peaks[1] < peaks[0] + 60, peaks  # MB; a frame's results are half a kilobyte
