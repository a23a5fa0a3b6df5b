"""TensorFlow as it is used here: on the host alone, and loaded when something first needs it.

It takes seconds to load, which readers of label files, a step on the devices and `--help` do
without. So this is the only place that imports it; what needs it imports `tf` from here.
"""

import functools
from types import ModuleType
from typing import Any


@functools.cache
def load() -> ModuleType:
    """Loads TensorFlow, if that is still to be done, and keeps it off the accelerators.

    It only feeds data; left alone it would take an accelerator's memory from JAX. Libraries that
    load it by themselves, such as TFDS, are used after this.
    """
    import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


class _TensorFlow:
    """The module `tensorflow`, loaded by the first use of a name in it."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(load(), name)
        setattr(self, name, value)
        return value


tf: Any = _TensorFlow()
