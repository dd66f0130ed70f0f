"""MixGRPO's window (2507.21802): which sampler steps have noise and are trained at an update; the others are deterministic."""

from __future__ import annotations

import math

from diffalign.core.errors import ConfigError


def window(
    update: int,
    *,
    top: int,
    size: int = 4,
    stay: int = 25,
    move: int = 1,
    start: int = 0,
    roll_back: bool = True,
    shrink: tuple[int, float] | None = None,
) -> range:
    """Return the trained steps at an update: `size` of them, those from `top` on left out. As released.

    The window begins at step `start`, stays for `stay` updates, and moves on by `move`. Behind `top` it is empty for one stay, and then
    goes back to its start, or without `roll_back` stays empty. With `shrink` (w, k) later stays are shorter: stay exp(-k max(0, place -
    w)), rounded up. MixGRPO has `top` two below the number of steps. Raises ConfigError for a window that would never move.

    >>> [list(window(update, top=3, size=2, stay=1)) for update in range(5)]
    [[0, 1], [1, 2], [2], [], [0, 1]]
    """
    if min(size, stay, move) < 1:
        raise ConfigError(f"window: size {size}, stay {stay}, move {move}; expected at least 1 each")
    place = start
    while True:
        length = stay if shrink is None else math.ceil(stay * math.exp(-shrink[1] * max(0, place - shrink[0])))
        if update < length or (place >= top and not roll_back):
            return range(min(place, top), min(place + size, top))
        update -= length
        place = start if place >= top else place + move
