"""A step of training, compiled: what it computes, one at a time or several in one go."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax

from heatmap import losses, objective
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.run import Run
from heatmap.state import TrainState
from input_pipeline import device


def make_train_step(run: Run, optimiser: optax.GradientTransformation):
    """Compiles (state, batch on the devices, resident) -> (next state, Told).

    The batch is divided over the mesh and the state is on every device, or divided between those
    of a group: sums over the batch, batch statistics and gradients become all-reduces, so that any
    number of devices takes the same step.

    Args:
      run: the model; its weights give the shapes.
      optimiser: of the trainable parameters.

    Returns:
      The jitted step. `resident` are the pictures that `input_pipeline.resident` has placed, or
      an empty dictionary.
    """
    return _compiled(_step(run, optimiser), run, optimiser)


def make_train_steps(run: Run, optimiser: optax.GradientTransformation):
    """Compiles the same for batches [n, B, …] that follow one another: told [n, …] of each.

    Where a step is over before the host has asked for the next, several at once keep an
    accelerator busy.
    """
    step = _step(run, optimiser)

    def steps(state: TrainState, batches, resident):
        return lax.scan(lambda state, batch: step(state, batch, resident), state, batches)

    return _compiled(steps, run, optimiser)


def _step(run: Run, optimiser: optax.GradientTransformation):
    config, decay = run.config, run.config.optim.ema_decay

    def loss_of(params, state: TrainState, batch, key):
        inputs = run_lib.network_input(batch, config)
        output, stats = run.network.train(params, state.frozen, state.stats, inputs, key)
        total, weight = objective.compute(config, run.points, output, batch)
        return losses.mean(total, weight), (total, weight, stats)

    def train_step(state: TrainState, batch, resident):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if "transform" in batch:
            batch = {**batch, "image": device.render(batch, resident, config)}
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (total, weight, stats)), grads = gradient(state.params, state, batch, key)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1 - decay) if decay else {}
        following = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            stats=stats,
            opt_state=opt_state,
            ema=ema,
            loss_sum=state.loss_sum + total,
            loss_weight=state.loss_weight + weight,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.global_norm(updates))
        return following, Told(loss, finite, objective.out_of_bounds_share(config, batch))

    return train_step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Told:
    """What a step says of itself, or several of themselves, [n] each.

    Attributes:
      loss: of the batch.
      finite: whether the loss and every update is.
      outside: the share of labelled points that augmentation has moved out of the input.
    """

    loss: jax.Array
    finite: jax.Array
    outside: jax.Array


def first_state(run: Run, optimiser: optax.GradientTransformation):
    """Returns (weights -> state before the first step, the state's shapes, its shardings)."""

    def create(weights) -> TrainState:
        return state_lib.new_state(weights, optimiser, run.config.optim.ema_decay > 0)

    shapes = jax.eval_shape(create, run.weights)
    return create, shapes, state_lib.divided(run.mesh, shapes)


def _compiled(function, run: Run, optimiser: optax.GradientTransformation):
    places = (first_state(run, optimiser)[2], state_lib.replicated(run.mesh))
    return jax.jit(function, donate_argnums=0, out_shardings=places)


def work_of(run: Run, optimiser: optax.GradientTransformation, *arguments) -> float:
    """Counts the floating-point operations of a step, as XLA does before it optimises.

    What `model.remat` computes a second time is no work, and fused attention counts as if it were
    plain.

    Args:
      run: the model.
      optimiser: of the trainable parameters.
      *arguments: of the step, or their shapes.

    Returns:
      0 where XLA does not say.
    """
    counted = dataclasses.replace(run, network=dataclasses.replace(run.network, countable=True))
    costs = jax.jit(_step(counted, optimiser)).lower(*arguments).cost_analysis()
    return float((costs or {}).get("flops", 0.0))
