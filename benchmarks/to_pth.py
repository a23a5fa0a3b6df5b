"""Writes the best weights of a run as a PyTorch state dict.

    python -m benchmarks.to_pth runs/sigma2 heatmap_model.pth

It is that of the run's twin in benchmarks/torch_twin.py, which is read with

    from benchmarks.torch_twin import HeatmapNet
    net = HeatmapNet(num_keypoints=5)
    net.load_state_dict(torch.load("heatmap_model.pth", weights_only=True))
    maps = net.eval()(images)  # [B, 1, 128, 128] in [0, 1] to [B, 5, 64, 64]
"""

import argparse
import pathlib

from heatmap import workdir
from heatmap.errors import UserError, guard


def save(folder: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the state dict.

    Args:
      folder: the workdir of a run.
      output: the .pth file.

    Raises:
      UserError: if PyTorch is missing, there is no such run, or its network has no twin.
    """
    try:
        import torch

        from benchmarks import torch_twin
    except ImportError as error:
        raise UserError("This needs PyTorch: pip install -e '.[parity]'.") from error
    from heatmap.run import open_run

    state = torch_twin.twin(open_run(folder)).state_dict()
    with workdir.replacing(output) as temporary:
        torch.save(state, temporary)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs `save`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.to_pth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", type=pathlib.Path, help="of a finished run")
    parser.add_argument("output", type=pathlib.Path, help="the .pth file to write")
    options = parser.parse_args(arguments)
    save(options.workdir, options.output)
    print(options.output)


if __name__ == "__main__":
    guard(main)
