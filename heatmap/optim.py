"""Learning-rate schedules and optax chains, with weight decay by parameter path."""

import re
from collections.abc import Callable

import jax
import optax

from heatmap.config import OptimConfig
from heatmap.fields import choose


def path_name(path) -> str:
    """Spells a pytree path as 'encoder/convs/0/kernel', the form that patterns match."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Says whether any regular expression is found in a parameter's path."""
    return any(re.search(pattern, name) for pattern in patterns)


def create(config: OptimConfig, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the optimiser.

    Args:
      config: which, with its rates.
      steps: length of the run, which the schedules are stretched to.

    Returns:
      (gradient transformation, learning rate as a function of the step).

    Raises:
      UserError: for an unknown optimiser or schedule.
    """
    schedule = create_schedule(config, steps)
    optimiser = choose(OPTIMISERS, config.name, "optim.name")(config, schedule)
    if config.clip_norm > 0:
        optimiser = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimiser)
    return optimiser, schedule


def create_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Builds the learning rate: a linear warm-up, then the schedule over what is left."""
    rest = max(1, steps - config.warmup_steps)
    schedule = choose(SCHEDULES, config.schedule, "optim.schedule")(config, rest)
    if not config.warmup_steps:
        return schedule
    # The first step takes 1/n of the rate, not zero: a step that changes nothing is wasted.
    peak, n = config.learning_rate, config.warmup_steps
    warmup = optax.linear_schedule(peak / n, peak, max(1, n - 1))
    return optax.join_schedules([warmup, schedule], [n])


def _constant(config: OptimConfig, steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(config.learning_rate)


def _cosine(config: OptimConfig, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.learning_rate, steps)


def _warmup_stable_decay(config: OptimConfig, steps: int) -> optax.Schedule:
    decay = max(1, round(config.decay_fraction * steps))
    stable = optax.constant_schedule(config.learning_rate)
    falling = optax.linear_schedule(config.learning_rate, 0.0, decay)
    return optax.join_schedules([stable, falling], [max(0, steps - decay)])


def _step(config: OptimConfig, steps: int) -> optax.Schedule:
    boundaries: dict[int, float] = {}
    for boundary in (round(share * steps) for share in config.step_boundaries):
        boundaries[boundary] = boundaries.get(boundary, 1.0) * config.step_factor
    return optax.piecewise_constant_schedule(config.learning_rate, boundaries)


def _adam(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    del config
    return optax.adam(rate)


def _adamw(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=config.weight_decay, mask=decay_mask(config.decay_paths))


def _sgd(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=config.momentum or None)


def decay_mask(patterns: tuple[str, ...]) -> Callable:
    """Returns the function that marks which parameters of a tree decay."""
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: matches(patterns, path_name(path)), params
    )


SCHEDULES = {"constant": _constant, "cosine": _cosine, "wsd": _warmup_stable_decay, "step": _step}
OPTIMISERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}
