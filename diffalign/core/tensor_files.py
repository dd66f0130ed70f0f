"""Tensors and facts about them in safetensors files, which are there whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffalign.core.errors import CheckpointError
from diffalign.core.files import atomic_file


def write(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write contiguous tensors on the CPU, and what is known of them; folders are made."""
    with atomic_file(file) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt", **facts})


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what `write` has written. Raises CheckpointError for a file that is missing, damaged or of another kind."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); expected a safetensors file") from error
