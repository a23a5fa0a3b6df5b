"""Artefacts of a trained network on hundreds of pictures, each in its own runtime, counted.

python -m pytest -m slow -n0 -s tests/test_export_agreement.py
"""

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import specimens as specimens_config
from heatmap import config as config_lib
from heatmap import predict
from heatmap import run as run_lib
from heatmap.export import __main__ as command
from heatmap.export import check
from heatmap.train import train
from input_pipeline import sources, specimens
from tests.test_export import require, run_outside

pytestmark = pytest.mark.slow

FORMATS = sorted(command.FORMATS)
TRAYS = 60  # of four to six specimens; of a series that is no part of the data set


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that has learned to find beetles, if not well."""
    config = specimens_config.get_config()
    config.train.update({"steps": 120, "epochs": 0, "eval_every_steps": 120})
    folder = tmp_path_factory.mktemp("runs") / "specimens"
    train(config_lib.from_mapping(config.to_dict()), folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of new specimens, every other tray three times as large."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(TRAYS):
        times = 1 + 2 * (number % 2)
        for i, pixels in enumerate(specimens.draw(len(specimens.TRAYS), number).pixels):
            enlarged = pixels.repeat(times, axis=0).repeat(times, axis=1)
            Image.fromarray(enlarged).save(folder / f"{number:02d}-{i}.png")
    return folder


@pytest.fixture(scope="module")
def expected(trained, pictures, tmp_path_factory):
    """What heatmap.predict finds, and the maps that it reads: outputs by the stem of a file."""
    out = tmp_path_factory.mktemp("predicted")
    predict.main([f"--workdir={trained}", str(pictures), f"--out={out}"])
    run = run_lib.open_run(trained)

    @jax.jit
    def network(weights, images):
        return run.network.predict(weights, run_lib.normalise_pixels(images, run.config))

    rows = pq.read_table(out / "points.parquet").to_pandas()
    found, _ = sources.find([str(pictures)])
    outputs = {}
    with jax.set_mesh(run.mesh):
        for event in sources.read(found, run.config, None, lambda _: 0):
            mine = rows[rows["source"] == event.source.name]
            maps = network(run.weights, event.items[0].image[None])[0]
            outputs[event.source.path.stem] = {
                "points": mine[["x", "y"]].to_numpy(np.float32),
                "maps": np.asarray(maps),
            }
    return outputs


@pytest.mark.parametrize("kind", FORMATS)
def test_an_artefact_agrees_with_predict(trained, pictures, expected, kind, tmp_path):
    require(kind)
    command.main([f"--workdir={trained}", f"--format={kind}", f"--out={tmp_path / 'out'}"])
    images = {path.stem: np.array(Image.open(path)) for path in sorted(pictures.iterdir())}
    found = run_outside(tmp_path / "out", images, tmp_path)
    assert found.keys() == expected.keys()
    names = run_lib.open_run(trained).points.names
    told = {name: check.compare(found[name], expected[name], names) for name in found}
    off = np.concatenate([one["pixels"] for one in told.values()])
    maps = max(one["maps"] for one in told.values())
    swapped = [f"{name} {point}" for name, one in told.items() for point in one["swapped"]]
    wrong = [f"{name}: {reason}" for name, one in told.items() for reason in one["wrong"]]
    print(
        f"\n{kind}: {len(found)} pictures, {(off <= check.PIXELS).sum()} of {len(off)} points "
        f"within {check.PIXELS:g} px (largest {off.max():.2g}), raw maps within {maps:.2g}; "
        f"swapped near-equal peaks: {swapped or 'none'}; others: {wrong or 'none'}"
    )
    assert len(found) >= 250
    assert len(off) >= 1000
    assert maps <= 1e-4
    assert (off <= 1e-3).mean() >= 0.999
    assert not wrong
