"""Ctrl-C and SIGTERM (Slurm, docker stop, spot machines): training ends after the step in hand, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from diffalign.core.errors import TrainingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(TrainingError):
    """Training was ended by a signal; `status` is the process's exit status, as a shell gives it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class StopRequest:
    """The first signal that came, if one has."""

    signal: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note a signal for the block instead of ending at once; a second one ends at once. Without effect outside of the main thread."""
        before = {}
        try:
            for number in SIGNALS:
                before[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread, where signals do not arrive
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
