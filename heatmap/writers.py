"""Where numbers go while a run trains: CLU metric writers, and Weights & Biases if asked for."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import metric_writers

from heatmap.config import Config
from heatmap.errors import UserError


def create(workdir: pathlib.Path, config: Config) -> metric_writers.MetricWriter:
    """Builds the writers that `config.log` asks for; only the first process writes files.

    Args:
      workdir: TensorBoard events go into its folder `tensorboard`.
      config: the run's config.

    Returns:
      One writer that passes everything on.

    Raises:
      UserError: if Weights & Biases is asked for and not installed.
    """
    writers: list[metric_writers.MetricWriter] = [metric_writers.LoggingWriter()]
    if jax.process_index() == 0:
        if config.log.tensorboard:
            folder = str(workdir / "tensorboard")
            writers.append(metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(folder)]))
        if config.log.wandb:
            writers.append(WandbWriter(workdir, config))
    return metric_writers.MultiWriter(writers)


class WandbWriter(metric_writers.MetricWriter):
    """Sends scalars and pictures to Weights & Biases; WANDB_MODE=offline keeps them in the workdir.

    A run resumes under the same id, which is made of the path of its workdir.
    """

    def __init__(self, workdir: pathlib.Path, config: Config):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "log.wandb=True needs Weights & Biases: pip install -e '.[wandb]'."
            ) from error
        self._wandb = wandb
        # Two workdirs may have the same name; a resumed one must be found again.
        place = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()
        self._run = wandb.init(
            project=config.log.project,
            name=workdir.name,
            id=f"{workdir.name}-{place[:8]}",
            resume="allow",
            dir=str(workdir),
            tags=list(config.log.tags),
            config=dataclasses.asdict(config),
        )

    def write_scalars(self, step: int, scalars: Mapping[str, Any]):
        """Logs numbers at a step."""
        self._run.log({k: float(np.asarray(v)) for k, v in scalars.items()}, step=step)

    def write_images(self, step: int, images: Mapping[str, Any]):
        """Logs pictures [N, H, W, C] at a step."""
        shown = {k: [self._wandb.Image(np.asarray(i)) for i in v] for k, v in images.items()}
        self._run.log(shown, step=step)

    def flush(self):
        """Does nothing: wandb sends by itself."""

    def close(self):
        """Ends the run."""
        self._run.finish()

    def _unused(self, *args, **kwargs):
        """Kinds of record that this program never writes."""

    write_summaries = write_texts = write_histograms = _unused
    write_audios = write_pointcloud = write_hparams = write_videos = _unused
