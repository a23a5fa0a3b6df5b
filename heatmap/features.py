"""Features of a frozen backbone, computed once for each picture: `model.keep_features`.

Without augmentation the backbone sees the same pictures in every epoch, and says the same of them:
what is left to do is the head.
"""

import jax
import numpy as np

from heatmap import evaluate
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.run import Run


def compute(run: Run, weights, records) -> dict[str, np.ndarray]:
    """Runs the backbone on every example once.

    Args:
      run: the model.
      weights: {'params', 'frozen', 'stats'}.
      records: `input_pipeline.Records` of a split.

    Returns:
      {'patches': [N, h, w, C], 'cls_token': [N, C]}, float32, in the order of the records.
    """

    def step(weights, batch):
        image = run_lib.normalise_pixels(batch["image"], run.config)
        patches, cls_token = run.network.features(weights, image)
        return {"patches": patches, "cls_token": cls_token}, 0.0, 0.0

    compiled = jax.jit(step, out_shardings=state_lib.replicated(run.mesh))
    found, _ = evaluate.collect(run, compiled, weights, records)
    return found
