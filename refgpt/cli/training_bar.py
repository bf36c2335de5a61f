"""The progress of a training: a bar on a terminal, otherwise a line every few steps."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from refgpt.training.run import RunEvent

log = logging.getLogger("refgpt")


class TrainingBar:
    """Shows each event of a ``Run``: loss, tokens a second, and the time that is left.

    Parameters
    ----------
    n_steps, n_done : int
    on_terminal : bool
        Whether to show a bar.
    every : int
        Steps between two lines otherwise.
    """

    def __init__(self, n_steps: int, n_done: int, on_terminal: bool, every: int) -> None:
        self._n_steps, self._n_before, self._every = n_steps, n_done, max(1, every)
        self._on_terminal, self._bar = on_terminal, None
        self._began = time.monotonic()

    def __enter__(self) -> TrainingBar:
        if self._on_terminal:
            from tqdm import tqdm

            self._bar = tqdm(total=self._n_steps, initial=self._n_before, unit="step", desc="training")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, event: RunEvent) -> None:
        """Show a step or an evaluation."""
        values = event.values
        if "loss" in values:
            self._show_step(event.step, values)
            return
        told = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in values.items() if name.endswith("_loss"))
        line = f"step {event.step}: {told}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            log.info("%s", line)

    def _show_step(self, step: int, values: dict[str, Any]) -> None:
        told = f"loss {values['loss']:.4f}, {values['tokens_per_second']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._every == 0 or step in (self._n_before + 1, self._n_steps):
            seconds = (time.monotonic() - self._began) / (step - self._n_before) * (self._n_steps - step)
            log.info("step %d of %d: %s, %s left", step, self._n_steps, told, _clock(seconds))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
