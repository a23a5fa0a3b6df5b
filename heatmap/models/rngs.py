"""The random keys that a model is made with."""

import jax
from flax import nnx


class Rngs(nnx.Rngs):
    """The keys of `nnx.Rngs(seed)`, sooner within `jit` and `eval_shape`.

    Those are counted in an array. To count on, Flax asks a traced one for its sharding, and JAX
    walks through all that has been traced before it answers that there is none: three quarters of
    the time that making a ViT-S took, and more the deeper the network. Here Python counts.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.default = _Stream(seed, tag="default")


class _Stream(nnx.RngStream):
    def __init__(self, seed: int, *, tag: str):
        super().__init__(seed, tag=tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key
