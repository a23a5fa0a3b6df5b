"""Where the time goes between the command and the first step of training."""

import os
import pathlib
import time

COMPILING = "compiling"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read, where it was compiled before
_READ = "/jax/compilation_cache/cache_hits"
_STAT = pathlib.Path("/proc/self/stat")
_STARTED = 21  # its field, in clock ticks since the machine started
_LOADED = time.monotonic()


class Startup:
    """A clock that divides the time since the process was started among named phases.

    What XLA compiles is booked as a phase of its own, whenever it happens.

    Attributes:
      seconds: of each phase so far, in the order in which they ended.
      programs: how many XLA has compiled, or read from the cache of compiled programs.
      read: how many of them it has read.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.programs = self.read = 0
        self._last = time.monotonic() - process_age()
        self._compiling = 0.0
        self._listens = False

    def listen(self) -> None:
        """Begins to book what is compiled; before, JAX need not be imported."""
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(self._on_duration)
        monitoring.register_event_listener(self._on_event)
        self._listens = True

    def ends(self, phase: str) -> None:
        """Books the time since the last phase ended, without what was compiled meanwhile."""
        now = time.monotonic()
        compiled = self._compiling - self.seconds.get(COMPILING, 0.0)
        spent = max(0.0, now - self._last - compiled)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
        if compiled:
            self.seconds[COMPILING] = self._compiling
        self._last = now

    def close(self) -> str:
        """Stops listening, and returns the line that says where the time went."""
        if self._listens:
            from jax import monitoring

            monitoring.unregister_event_duration_listener(self._on_duration)
            monitoring.unregister_event_listener(self._on_event)
            self._listens = False
        parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.seconds.items())
        kept = f" ({self.read} of {self.programs} programs kept from earlier)"
        total = sum(self.seconds.values())
        return f"first step after {total:.1f} s: {parts}{kept if self.programs else ''}"

    def _on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self._compiling += duration_secs
            self.programs += 1

    def _on_event(self, event: str, **_: str | int) -> None:
        self.read += event == _READ


def process_age() -> float:
    """Returns for how many seconds this process has been running.

    Linux keeps the moment at which it was started, before a command replaced itself by another;
    elsewhere the age is that of this module.
    """
    try:
        # The second field is the program's name in brackets, which may hold anything.
        fields = _STAT.read_text().rpartition(")")[2].split()
        started = int(fields[_STARTED - 2]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _LOADED
