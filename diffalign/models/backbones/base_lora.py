"""LoRA files that are part of a run's base: fused into its weights before anything is trained, and wherever the run is used."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.models.adapter_files import AdapterFile
from diffalign.models.adapters import merge, scale_lora
from diffalign.models.backbones.lora_layouts import lora_file

NAME = "base_lora"  # of an adapter for as long as it is being fused
LARGEST = 10.0  # strength


@dataclass(frozen=True, slots=True)
class BaseLora:
    """A LoRA file that is added to the weights of a base at `strength`."""

    file: Path
    strength: float
    sha256: str

    @classmethod
    def of(cls, text: str) -> BaseLora:
        """Return what `FILE[:strength]` means, FILE being a file or a folder that holds one.

        Raises ConfigError for a strength of zero, or that is no number, and CheckpointError where there is no file.
        """
        name, colon, tail = text.rpartition(":")
        if not colon or Path(text).exists():
            name, tail = text, "1"
        try:
            strength = float(tail)
        except ValueError as error:
            raise ConfigError(f"`base_lora`: found {text!r}; expected FILE, or FILE:strength as in style.safetensors:0.8") from error
        if not 0 < abs(strength) <= LARGEST:
            raise ConfigError(f"`base_lora`: the strength of {name} is {tail}; expected a number up to {LARGEST:g}, and not zero")
        file = lora_file(Path(name)).resolve()
        return cls(file, strength, _sha256(file))

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> BaseLora:
        """Return what run.json says of a fused file. Raises CheckpointError where the file is gone, or is another one by now."""
        file = Path(str(facts.get("file")))
        if not file.is_file():
            raise CheckpointError(f"{file}: this LoRA is part of the base that the run was trained on (`base_lora`), and is not there")
        if _sha256(file) != facts.get("sha256"):
            raise CheckpointError(f"{file}: another file than the LoRA that the run was trained on (`base_lora`); its SHA-256 differs")
        return cls(file, float(facts["strength"]), str(facts["sha256"]))

    def facts(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        return {"file": str(self.file), "strength": self.strength, "sha256": self.sha256}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fuse(network: nn.Module, adapter: AdapterFile, strength: float) -> None:
    """Add the adapter of a LoRA file to a network's weights. Raises CheckpointError where it is made for another one."""
    place = next(network.parameters()).device
    adapter.put(network, NAME)
    network.to(place)
    scale_lora(network, strength, NAME)
    merge(network)
    network.requires_grad_(False)


def check_fit(network: nn.Module, adapter: AdapterFile) -> None:
    """Raise CheckpointError where an adapter is made for another network than this one, which has no numbers and stays as it is."""
    with torch.device("meta"):
        adapter.inject(copy.deepcopy(network), NAME)
