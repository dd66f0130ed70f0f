"""Extrapolation between rounds: a round begins beyond the result of the last one, in the direction in which that one moved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from diffalign.core import tensor_files
from diffalign.core.errors import CheckpointError
from diffalign.core.files import atomic_folder
from diffalign.core.runs import CONFIG, RUN, Run
from diffalign.models.adapter_files import PEFT_CONFIG, PEFT_WEIGHTS, WEIGHTS
from diffalign.models.backbones.table import load_denoiser

FILES = (RUN, CONFIG, WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG)


def write_beyond(folder: Path, last: Path, before: Path | None, momentum: float) -> None:
    """Write the run `folder`: that of `last`, each of its weights w at w + momentum * (w - v), where v is that of the run `before`.

    Accelerated Preference Optimization (2410.06293): log p + momentum * (log p - log p_before) of the policies, taken in the weights as
    its authors do. Of a LoRA it is taken in both factors. Without `before` v is the model that training began with: zero for the factor
    `lora_B`, the base's weights for a whole denoiser; other parts of an adapter have no known start and stay. Raises CheckpointError where
    the two runs have other weights.

    >>> write_beyond(Path("outputs/run/round-2/start"), Path("outputs/run/round-1"), None, 0.3)  # doctest: +SKIP
    """
    run = Run.open(last, expects="image")
    with atomic_folder(folder) as temporary:
        for name in FILES:
            if (last / name).is_file():
                shutil.copyfile(last / name, temporary / name)
        if run.full:
            shutil.copytree(last / run.component, temporary / run.component)
        files = sorted(temporary.rglob("*.safetensors"))
        base = _base(run) if run.full and before is None else {}
        for file in files:
            tensors, facts = tensor_files.read(file)
            earlier = _fresh(tensors, base) if before is None else tensor_files.read(before / file.relative_to(temporary))[0]
            if earlier.keys() != tensors.keys():
                raise CheckpointError(f"{before}: has other weights than {last}, so that there is no way from one to the other")
            tensor_files.write(file, {name: moved(value, earlier[name], momentum) for name, value in tensors.items()}, facts)


def moved(value: Tensor, earlier: Tensor, momentum: float) -> Tensor:
    """Return value + momentum * (value - earlier), computed in float32.

    >>> import torch
    >>> moved(torch.tensor([3.0]), torch.tensor([1.0]), 0.5)
    tensor([4.])
    """
    wide = value.float()
    return (wide + momentum * (wide - earlier.float())).to(value.dtype).contiguous()


def _base(run: Run) -> Mapping[str, Tensor]:
    return load_denoiser(run.base, revision=run.facts.get("revision"), variant=run.facts.get("variant")).state_dict()


def _fresh(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what each tensor was before the first round: of a whole denoiser the base's, of an adapter that adds nothing yet."""
    return {name: base.get(name, value.new_zeros(value.shape) if ".lora_B." in name else value) for name, value in tensors.items()}
