"""Which of the processes of a launch this is, and which share of the work is its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


def process_state() -> PartialState:
    """Return which process of a launch this is, and its device. The others wait for one that works long: for up to seven days."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Accelerator passes the flag on by itself; a bare PartialState on a machine without a GPU would run every process alone.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))


# What gloo, NCCL and torch's store say where the process at the other end is no more.
ENDED = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "remote process exited",
    "ncclRemoteError",
)


def ended_elsewhere(error: RuntimeError) -> str | None:
    """Return a sentence on an error of a process that waits for another one which has ended, None of any other error."""
    mark = next((mark for mark in ENDED if mark in str(error)), None)
    if mark is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return (
        f"another process of the launch has ended ({mark}), and so does process {os.environ.get('RANK')}; the other's own message says why"
    )


def is_wanted(variable: str) -> bool:
    """Return whether accelerate's launcher says yes in a variable of the environment."""
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def spreads_weights() -> bool:
    """Return whether the launch asks for the model's weights to be spread over its processes: `accelerate launch --use_fsdp`."""
    return is_wanted("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", "1")) > 1


def first_alone(action: Callable[[], T]) -> T:
    """Call `action` in the first process, and return in all what it gave there; all must call.

    Raises OSError in all processes where `action` did, as for a full disk, so that none waits for the first.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if process_state().is_main_process:
        try:
            outcome[0] = action()
        except (OSError, RuntimeError) as error:  # torch and safetensors have errors of their own for a full disk
            outcome[1] = str(error)
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise OSError(failure)
    return result


def shares(missing: Callable[[], Sequence[T]]) -> Iterator[Sequence[T]]:
    """Yield this process's share of what `missing` lists; after the loop nothing of it is missing, on any machine.

    What the caller does with an item must take it off the lists of all processes that read the same disk. Where machines have disks of
    their own, a second share is of what the first ones left missing here, among the processes of this machine.

    >>> list(shares(lambda: [1, 2, 3]))
    [[1, 2, 3]]
    """
    state = process_state()
    everywhere = state.process_index, state.num_processes
    here = state.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    for rank, count in dict.fromkeys([everywhere, here]):
        own = missing()[rank::count]
        state.wait_for_everyone()  # or a list would lack what a faster process has done already
        yield own
        state.wait_for_everyone()
