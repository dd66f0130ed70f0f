"""Tensors and facts about them in safetensors files, which are there whole or not at all; and the check of what others have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffalign.core.errors import CheckpointError
from diffalign.core.files import atomic_file
from diffalign.core.weight_files import damage

NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # dtypes that weights are written in
LARGEST = torch.finfo(torch.float16).max  # weights are published in half precision, so no sound one is larger


def write(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write contiguous tensors on the CPU, and what is known of them; folders are made."""
    with atomic_file(file) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt", **facts})


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what `write` has written. Raises CheckpointError for a file that is missing, cut off, damaged or of another kind."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file}: {damage(file, error)}; expected a safetensors file") from error


def names(file: Path) -> list[str]:
    """Return the names of a file's tensors, of which none is read. Raises CheckpointError as `read`."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file}: {damage(file, error)}; expected a safetensors file") from error


def check(file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], owner: str) -> None:
    """Raise CheckpointError unless `tensors` of `file` have exactly the names and shapes of `expected`, and sound numbers.

    `owner` says in words what they belong to. The error names the first odd tensor.
    """
    if odd := sorted(tensors.keys() ^ expected.keys()):
        lack = "lacks" if odd[0] in expected else "has the unexpected"
        raise CheckpointError(f"{file}: {lack} `{odd[0]}` ({len(odd)} names differ); expected the {len(expected)} tensors of {owner}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(f"{file}: `{name}` has shape {list(value.shape)}; expected {list(expected[name].shape)}, as in {owner}")
        check_numbers(str(file), name, value)


def check_numbers(source: str, name: str, value: Tensor) -> None:
    """Raise CheckpointError for a tensor of `source` that is not of finite floating-point numbers of a weight's size."""
    if value.dtype not in NUMBERS:
        raise CheckpointError(f"{source}: `{name}` is of {value.dtype}; expected floating-point numbers of 16, 32 or 64 bits")
    own: Any = getattr(value, "to_local", lambda: value)()  # of a tensor that is spread over processes, this one's share
    if not own.numel():
        return
    low, high = (float(end) for end in own.aminmax())
    if not (low >= -LARGEST and high <= LARGEST):  # also where they are no numbers
        odd = high if low >= -LARGEST else low
        raise CheckpointError(f"{source}: `{name}` holds {odd:g}; expected finite weights, none beyond {LARGEST:g}")
