"""What training changes: the state, its division into parts, and where its arrays live."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from heatmap import hardware, optim, processes
from heatmap.errors import UserError

Tree = Any
BACKBONE = "backbone"  # what a model calls the part that may come pretrained
DATA, MODEL = "data", "model"  # the axes of the mesh
_WHOLE_SIZE = 2**14  # numbers of an array that is not worth dividing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs, as a pytree of arrays.

    Attributes:
      step: int32, the number of steps taken.
      params: the trainable parameters.
      frozen: the parameters that stay as they are: no gradients, no optimiser memory.
      stats: batch statistics.
      opt_state: of the optimiser.
      ema: the running average of `params`, or an empty dictionary.
      loss_sum: sum of weighted errors since the last line of the training log.
      loss_weight: sum of weights since then.
    """

    step: jax.Array
    params: Tree
    frozen: Tree
    stats: Tree
    opt_state: Tree
    ema: Tree
    loss_sum: jax.Array
    loss_weight: jax.Array

    @property
    def weights(self) -> dict[str, Tree]:
        """What predicts: the averaged parameters where there are any."""
        return {"params": self.ema or self.params, "frozen": self.frozen, "stats": self.stats}


@dataclasses.dataclass(frozen=True)
class Network:
    """A model without its arrays: two static graphs, one to train and one to evaluate.

    Attributes:
      train_graph: in training mode.
      eval_graph: in evaluation mode.
      countable: trains without fused kernels, whose work no compiler knows, and nothing twice.
    """

    train_graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    countable: bool = False

    def train(self, params, frozen, stats, inputs, key) -> tuple[jax.Array, Tree]:
        """Runs the model in training mode.

        Args:
          params: trainable parameters.
          frozen: the others.
          stats: batch statistics.
          inputs: [B, H, W, C] normalised, or what `features` returns.
          key: for dropout.

        Returns:
          (output, new statistics).
        """
        model = nnx.merge(self.train_graph, params, frozen, stats)
        if self.countable:
            plain = {"remat": False, "fused": False}
            model = nnx.with_attributes(model, raise_if_not_found=False, **plain)
        output = model(inputs, rngs=nnx.Rngs(dropout=key))
        return output, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def predict(self, weights: dict[str, Tree], inputs, **attributes) -> jax.Array:
        """Runs the model in evaluation mode: no dropout, stored statistics.

        Args:
          weights: {'params', 'frozen', 'stats'}.
          inputs: [B, H, W, C] normalised, or what `features` returns.
          **attributes: of the layers that have them, to be set otherwise than in training.

        Returns:
          Raw maps [B, h, w, K] or coordinates [B, K, 2].
        """
        model = self._evaluating(weights)
        if attributes:
            model = nnx.with_attributes(model, raise_if_not_found=False, **attributes)
        return model(inputs)

    def describe(self, weights: dict[str, Tree], inputs) -> jax.Array:
        """Sums each picture up as the network sees it, [B, F], to compare pictures by."""
        model: Any = self._evaluating(weights)
        return model.describe(inputs)

    def features(self, weights: dict[str, Tree], image) -> tuple[jax.Array, jax.Array]:
        """Runs the backbone alone: (patches [B, h, w, C], CLS token [B, C])."""
        return getattr(self._evaluating(weights), BACKBONE)(image)

    def _evaluating(self, weights: dict[str, Tree]) -> nnx.Module:
        parts = (weights["params"], weights["frozen"], weights["stats"])
        return nnx.merge(self.eval_graph, *parts)


def split_model(
    model: nnx.Module, freeze_paths: tuple[str, ...] = ()
) -> tuple[Network, dict[str, Tree]]:
    """Divides a model into static graphs and plain dictionaries of arrays.

    Args:
      model: in any mode.
      freeze_paths: regular expressions of the parameters to freeze.

    Returns:
      (network, {'params', 'frozen', 'stats'}).

    Raises:
      UserError: if a pattern matches no parameter.
    """
    names = [optim.path_name(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    for pattern in freeze_paths:
        if not any(optim.matches((pattern,), name) for name in names):
            raise UserError(
                f"optim.freeze_paths: {pattern!r} matches no parameter; they are named like "
                f"{names[0]!r}."
            )
    frozen = nnx.All(nnx.Param, lambda path, _: optim.matches(freeze_paths, optim.path_name(path)))
    parts = (nnx.All(nnx.Param, nnx.Not(frozen)), frozen, nnx.BatchStat)
    modes = {"deterministic": True, "use_running_average": True}
    training = nnx.with_attributes(model, raise_if_not_found=False, **dict.fromkeys(modes, False))
    evaluating = nnx.with_attributes(model, raise_if_not_found=False, **modes)
    for path, module in nnx.iter_modules(training):
        # A frozen layer keeps its statistics too: those of a small batch would move its output.
        if isinstance(module, nnx.BatchNorm) and optim.matches(
            freeze_paths, optim.path_name((*path, "scale"))
        ):
            module.use_running_average = True
    train_graph, *states = nnx.split(training, *parts)
    eval_graph = nnx.split(evaluating, *parts)[0]
    arrays = [nnx.to_pure_dict(state) for state in states]
    network = Network(train_graph, eval_graph)
    return network, dict(zip(("params", "frozen", "stats"), arrays, strict=True))


def new_state(weights: dict[str, Tree], optimiser, ema: bool) -> TrainState:
    """Returns the state before the first step."""
    params = weights["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=optimiser.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        loss_sum=jnp.zeros((), jnp.float32),
        loss_weight=jnp.zeros((), jnp.float32),
        **weights,
    )


def divide_cpu(batch_size: int) -> None:
    """Makes two devices of a CPU with two cores or more, before JAX starts.

    Much of a small network's step runs on one core at a time; half a batch on each of two devices
    keeps both busy. Nothing changes on accelerators, for a batch that cannot be halved, or where
    the environment already says how many devices there are.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    chosen |= "JAX_NUM_CPU_DEVICES" in os.environ
    if not chosen and batch_size % 2 == 0 and hardware.cpus() >= 2:
        jax.config.update("jax_num_cpu_devices", 2)


def create_mesh(shards: int = 1, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh over the devices, with the axes 'data' and 'model'.

    Batches are divided over both, parameters over 'model'. The devices of a process stand
    together: it reads one stretch of every batch.

    Args:
      shards: devices that share one copy of the parameters.
      devices: by default all.

    Raises:
      UserError: if the devices cannot be divided into such groups.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) % shards:
        raise UserError(
            f"model.shards={shards} does not divide the {len(devices)} devices that there are; "
            "choose a divisor of that."
        )
    grid = np.array(devices).reshape(-1, shards)
    return jax.sharding.Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: jax.sharding.Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of batches: the first axis, or another, divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, (DATA, MODEL)))


def divided(mesh: jax.sharding.Mesh, tree: Tree) -> Tree:
    """The shardings of parameters, and of whatever has their shapes, such as their averages.

    Each large array is cut along its longest axis that can be cut evenly, so that the devices of
    a group hold a part each (fully sharded data parallelism; ZeRO, Rajbhandari et al., SC 2020).
    Small ones stay whole: to gather them would cost more than they take.

    Args:
      mesh: from `create_mesh`.
      tree: arrays, or their shapes.
    """
    shards = mesh.shape[MODEL]

    def place(leaf) -> NamedSharding:
        able = [axis for axis, size in enumerate(leaf.shape) if size % shards == 0]
        if shards == 1 or not able or leaf.size < _WHOLE_SIZE:
            return replicated(mesh)
        longest = max(able, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, MODEL))

    return jax.tree.map(place, tree)


def sha256(state: TrainState) -> str:
    """Hashes parameters, optimiser, average and statistics, bit for bit, with their names."""
    parts = ("params", "frozen", "stats", "opt_state", "ema")
    return tree_sha256({name: getattr(state, name) for name in parts})


def tree_sha256(tree: Tree) -> str:
    """Hashes the arrays of a tree with their paths, shapes and types."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = processes.whole(leaf)
        digest.update(f"{optim.path_name(path)}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
