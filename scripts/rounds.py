"""Long trainings in rounds: checkpoints that a killed run goes on from, the time all its runs have cost, weights of a round before."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm


def steps(path: Path, state: dict, total: int, every: int, label: str) -> Iterator[int]:
    """Yield the steps still to do; restores every object in `state` from `path` and saves them there on the way."""
    first, start = 0, time.time()
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        first = saved.pop("step")
        for name, part in state.items():
            part.load_state_dict(saved[name])
    for step in tqdm(range(first, total), initial=first, total=total, desc=label):
        yield step
        if (step + 1) % every == 0 or step + 1 == total:
            parts = {name: part.state_dict() for name, part in state.items()}
            torch.save({"step": step + 1, **parts}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            start = add_seconds(path.parent, start)


def start_from(folder: Path | None, part: str, model: Any) -> Any:
    """Return `model`, with the weights of an earlier round where there is one."""
    return model if folder is None else type(model).from_pretrained(folder / part)


def add_seconds(work_dir: Path, start: float) -> float:
    """Add the time since `start` to what this training has cost, over all its runs, and return now."""
    clock, now = work_dir / "seconds.json", time.time()
    clock.write_text(json.dumps((json.loads(clock.read_text()) if clock.exists() else 0.0) + now - start))
    return now
