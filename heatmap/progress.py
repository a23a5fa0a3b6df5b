"""What a run says while it trains: how far it is, how fast, and what it waits for."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from heatmap.config import Config

T = TypeVar("T")
INPUT, TRANSFER = "input", "transfer"


class Progress:
    """A bar with rate and remaining time on a terminal, plain lines elsewhere.

    Attributes:
      work: floating-point operations of a step, None until `wants_work` has been answered; 0
        where that is not known.
    """

    def __init__(self, first: int, steps: int, config: Config, peak: float, counts: bool = False):
        """Begins to count.

        Args:
          first: the steps that have been taken already.
          steps: of the whole run.
          config: its batch size and precision, and how often it speaks.
          peak: operations per second that the devices can do, 0 where that is not known.
          counts: whether operations are to be counted even so.
        """
        self.work: float | None = None
        self._first, self._steps, self._config = first, steps, config
        self._peak, self._counts = peak, counts
        self._began = self._shown = time.monotonic()
        self._shown_step = first
        self._waited: dict[str, float] = {}
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True)

    @property
    def wants_work(self) -> bool:
        """Whether to find out how much work a step is."""
        return (self._counts or bool(self._peak)) and self.work is None

    def each(self, batches: Iterable[T]) -> Iterator[T]:
        """Passes batches on, and notes how long each was waited for."""
        remaining = iter(batches)
        while True:
            with self.waits(INPUT):
                batch = next(remaining, None)
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def waits(self, what: str) -> Iterator[None]:
        """Notes how long the block takes, in which the loop can only wait."""
        began = time.monotonic()
        yield
        self._waited[what] = self._waited.get(what, 0.0) + time.monotonic() - began

    def is_due(self, step: int) -> bool:
        """Says whether to report this step."""
        return step % self._config.log.every_steps == 0

    def advance(self, step: int) -> None:
        """Moves the bar on; the loss is not waited for."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def show(self, step: int, loss: float) -> dict[str, float]:
        """Reports a step, and the time since the last report.

        A run whose devices are busy waits for them; one that waits for its input has devices that
        are idle meanwhile, once it does so for most of the time. An accelerator may copy a batch
        while the loop goes on, and is then waited for as a device.

        Returns:
          The numbers, to be logged: images per second, the share of the time that the loop has
          waited for each, operations per second where a step's are known, and their share of a
          known peak; none if no step was taken since.
        """
        now = time.monotonic()
        seconds, steps = now - self._shown, step - self._shown_step
        waits: dict[str, float] = {}
        numbers: dict[str, float] = {}
        if steps and seconds:  # the first step compiles, and is no measure
            rate = steps / seconds
            waits = {what: share / seconds for what, share in self._waited.items()}
            numbers["speed/images_per_s"] = rate * self._config.train.batch_size
            numbers |= {f"speed/waits_for_{what}": share for what, share in waits.items()}
            if self.work:
                numbers["speed/flop_per_s"] = rate * self.work
                if self._peak:
                    numbers["speed/share_of_peak"] = rate * self.work / self._peak
        self.goes_on(step)
        if self._bar is not None:
            shown: dict[str, Any] = {"loss": f"{loss:.3g}"}
            if "speed/images_per_s" in numbers:
                shown["images/s"] = f"{numbers['speed/images_per_s']:.0f}"
            if "speed/share_of_peak" in numbers:
                shown["of the bf16 peak"] = f"{numbers['speed/share_of_peak']:.0%}"
            if waits:
                longest = max(waits, key=waits.__getitem__)
                shown["waits for"] = f"{longest} {waits[longest]:.0%}"
            self._bar.set_postfix(shown, refresh=False)
        else:
            print(self._line(step, loss, waits, numbers), flush=True)
        return numbers

    def _line(
        self, step: int, loss: float, waits: dict[str, float], numbers: dict[str, float]
    ) -> str:
        # The remaining time follows the whole run so far, with its evaluations.
        each = (time.monotonic() - self._began) / max(1, step - self._first)
        left = tqdm.format_interval((self._steps - step) * each)
        parts = [f"step {step}/{self._steps}", f"loss {loss:.4g}"]
        if "speed/images_per_s" in numbers:
            parts.append(f"{numbers['speed/images_per_s']:.0f} images/s")
        if "speed/flop_per_s" in numbers:
            parts.append(
                f"{numbers['speed/flop_per_s'] / 1e12:.3g} TFLOP/s{self._of_peak(numbers)}"
            )
        parts += [f"waits for {what} {share:.0%}" for what, share in waits.items()]
        return "  ".join([*parts, f"{left} left"])

    def _of_peak(self, numbers: dict[str, float]) -> str:
        """Words the share of the peak, which is one of bfloat16 whatever the run computes in."""
        if "speed/share_of_peak" not in numbers:
            return ""
        precision = self._config.model.dtype
        other = "" if precision == "bfloat16" else f", in {precision}"
        return f", {numbers['speed/share_of_peak']:.0%} of the bf16 peak{other}"

    def goes_on(self, step: int) -> None:
        """Begins to measure anew after a step, so that what was no training does not count."""
        self._shown, self._shown_step, self._waited = time.monotonic(), step, {}

    def validated(self, line: dict, metric: str, value: float) -> None:
        """Reports an evaluation."""
        val_loss = "-" if line["val_loss"] is None else f"{line['val_loss']:.4g}"
        tqdm.write(
            f"epoch {line['epoch']}  train loss {line['train_loss']:.4g}  val loss {val_loss}  "
            f"{metric} {value:.4g}"
        )
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
