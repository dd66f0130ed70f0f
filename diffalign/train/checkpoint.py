"""Checkpoints: `checkpoint-N` folders that hold what a run needs to go on bit for bit, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffalign.core import tensor_files
from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError
from diffalign.core.files import atomic_folder, write
from diffalign.core.processes import first_alone
from diffalign.train import shares

WEIGHTS, STATE, FACTS, SHARES = "trained.safetensors", "state.pt", "facts.json", "shares"


def save(
    output_dir: Path,
    step: int,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    facts: dict[str, Any],
    limit: int | None,
    more: Callable[[Path], None] | None = None,
) -> Path:
    """Write `checkpoint-<step>` and remove the oldest above `limit`, but never the one just written; `more` adds files to the folder."""
    folder = output_dir / f"checkpoint-{step}"
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        _describe(temporary, step, state, facts)
        if more is not None:
            more(temporary)
    _remove_oldest(output_dir, folder, limit)
    return folder


def save_shares(
    output_dir: Path,
    step: int,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    facts: dict[str, Any],
    limit: int | None,
    more: Callable[[Path], None],
) -> Path:
    """Do what `save` does for a run whose weights are spread: every process calls, and writes its share of the tensors.

    Raises OSError in all processes where one of them could not write; nothing is left then.
    """
    folder = output_dir / f"checkpoint-{step}"
    tensors, rest = shares.parted(weights, state)
    with contextlib.ExitStack() as stack:
        temporary = first_alone(lambda: stack.enter_context(atomic_folder(folder)))
        shares.write(temporary / SHARES, tensors)
        first_alone(lambda: _describe(temporary, step, rest, {**facts, SHARES: shares.sizes(temporary / SHARES)}))
        more(temporary)
        first_alone(lambda: stack.pop_all().close())  # the folder takes its name
    first_alone(lambda: _remove_oldest(output_dir, folder, limit))
    return folder


def _describe(folder: Path, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    torch.save(dict(state), folder / STATE)
    (folder / FACTS).write_text(json.dumps({"step": step, **facts}, indent=2) + "\n")


def _remove_oldest(output_dir: Path, newest: Path, limit: int | None) -> None:
    for old in _all(output_dir)[:-limit] if limit else []:
        if old != newest:
            shutil.rmtree(old)


def find(output_dir: Path, wanted: str) -> Path | None:
    """Return the folder that `wanted` (`latest` or a path) means; None if `latest` finds no checkpoint.

    Raises CheckpointError if a named one is missing or incomplete.
    """
    if wanted == "latest":
        complete = _all(output_dir)
        return complete[-1] if complete else None
    for folder in (Path(wanted), output_dir / wanted):
        if folder.is_dir():
            if missing := _missing(folder):
                raise CheckpointError(f"{folder}: the checkpoint has no {missing[0]}")
            return folder
    raise CheckpointError(f"`resume_from_checkpoint`: there is no checkpoint {wanted}, nor {output_dir / wanted}")


def refuse_newer(output_dir: Path, step: int) -> None:
    """Raise CheckpointError if `output_dir` holds a checkpoint behind `step`: `latest` would later mean that abandoned one."""
    newer = [there for there in steps(output_dir) if there > step]
    if newer:
        raise CheckpointError(
            f"{output_dir / f'checkpoint-{newer[-1]}'}: newer than the checkpoint to go on from (step {step}); move it away, or use "
            "another output_dir"
        )


def facts(folder: Path) -> dict[str, Any]:
    """Return the step and the facts a checkpoint was saved with."""
    try:
        return read_mapping(folder / FACTS, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; go on from an earlier checkpoint") from error


def load(folder: Path, parameters: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (weights, state) of a checkpoint, on the CPU; where `parameters`, which they are for, are spread, as these are.

    It does not matter how many processes have written it, nor whether each held the whole model.
    """
    parameters = parameters or {}
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if (folder / SHARES).is_dir():
            return shares.joined(shares.read(folder / SHARES, facts(folder)[SHARES], parameters), state)
        return shares.spread_state(tensor_files.read(folder / WEIGHTS)[0], state, parameters)
    except (CheckpointError, UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{folder}: damaged ({error}); go on from an earlier checkpoint") from error


def steps(output_dir: Path) -> list[int]:
    """Return the steps of the complete checkpoints, in order."""
    return [int(path.name.removeprefix("checkpoint-")) for path in _all(output_dir)]


def _all(output_dir: Path) -> list[Path]:
    """Return complete checkpoints, oldest first, by number and not by name."""
    numbered = [(int(m.group(1)), p) for p in output_dir.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [path for _, path in sorted(numbered) if not _missing(path)]


def _missing(folder: Path) -> list[str]:
    missing = [name for name in (WEIGHTS, STATE, FACTS) if not (folder / name).is_file()]
    return [name for name in missing if name != WEIGHTS or not (folder / SHARES).is_dir()]


def keep_log(path: Path, step: int) -> None:
    """Keep the log lines up to `step`: those behind it belong to a run that was cut off."""
    if not path.exists():
        return
    kept = [line for line, logged in _log_lines(path) if logged <= step]
    write({path: "".join(kept)})


def _log_lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the whole lines of a log with their steps; a line that a kill cut in two is passed over."""
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(json.JSONDecodeError):
            yield line, json.loads(line)["step"]
