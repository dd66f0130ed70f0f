"""Which of the processes of a launch this is."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def process_state() -> PartialState:
    """Return which process of a launch this is, and its device. The others wait for one that works long: for up to seven days."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Accelerator passes the flag on by itself; a bare PartialState on a machine without a GPU would run every process alone.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))
