"""The tensors of a checkpoint of a run whose weights are spread over processes: safetensors files, of which each process writes one.

They are written and read by `torch.distributed.checkpoint`, so that a run may go on with another number of processes, or with one that
holds the whole model. A tensor is called "weights.NAME", or "optimizer.N.KEY" and "ema.N" of the trained parameter number N.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from diffalign.core.errors import CheckpointError
from diffalign.models.sharded import spread_like

Tensors = dict[str, Tensor]


def parted(weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Return all tensors of weights, optimiser and moving average by name, and the state without them."""
    optimizer, ema = state["optimizer"], state["ema"]
    tensors = {f"weights.{name}": value.detach() for name, value in weights.items()}
    tensors |= {f"optimizer.{n}.{key}": value for n, values in optimizer["state"].items() for key, value in values.items()}
    rest = {**state, "optimizer": {**optimizer, "state": {}}}
    if ema:
        tensors |= {f"ema.{n}": value for n, value in enumerate(ema["shadow_params"])}
        rest["ema"] = {**ema, "shadow_params": []}
    return tensors, rest


def joined(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Return what `parted` has taken apart."""
    weights, optimizer, ema = dict[str, Tensor](), dict[int, Tensors](), dict[int, Tensor]()
    for name, value in tensors.items():
        kind, _, own = name.partition(".")
        if kind == "weights":
            weights[own] = value
        elif kind == "ema":
            ema[int(own)] = value
        else:
            number, _, key = own.partition(".")
            optimizer.setdefault(int(number), {})[key] = value
    state = {**rest, "optimizer": {**rest["optimizer"], "state": optimizer}}
    if state["ema"]:
        state["ema"] = {**state["ema"], "shadow_params": [ema[n] for n in sorted(ema)]}
    return weights, state


def write(folder: Path, tensors: Tensors) -> None:
    """Write each process's share of `tensors` into `folder`; all must call. Raises OSError in all where one of them could not."""
    try:
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        rank, failure = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {failure[0]}") from error


def sizes(folder: Path) -> dict[str, int]:
    """Return how many bytes each file of shares has: what tells whether one is missing or cut off."""
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


def read(folder: Path, expected: Mapping[str, int], parameters: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors in `folder`; in the processes of a run that is spread, each its share, laid out as its `parameters` are.

    Raises CheckpointError for files that are not of the `expected` sizes, or do not read.
    """
    if (there := sizes(folder)) != expected:
        odd = sorted(dict(there.items() ^ dict(expected).items()))
        raise CheckpointError(f"{folder / odd[0]}: {there.get(odd[0], 'no')} bytes; expected {expected.get(odd[0], 'no such file')}")
    reader = dcp.HuggingFaceStorageReader(str(folder))
    spread = any(isinstance(value, DTensor) for value in parameters.values())
    tensors = {name: _like(name, value, parameters) for name, value in reader.read_metadata().state_dict_metadata.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a process alone
            dcp.load(tensors, storage_reader=reader, no_dist=not spread)
    except CheckpointException as error:
        raise CheckpointError(f"{folder}: {next(iter(error.failures.values()))[0]}") from error
    return tensors


def _like(name: str, stored: Any, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return room for a stored tensor, spread as the parameter it belongs to is, if it has that one's shape."""
    if not isinstance(stored, TensorStorageMetadata):
        raise CheckpointError(f"`{name}` is a {type(stored).__name__}; expected a tensor")
    kind, _, own = name.partition(".")
    values: Sequence[Tensor] = list(parameters.values())
    number = -1 if kind == "weights" else int(own.partition(".")[0])
    parameter = parameters.get(own) if kind == "weights" else values[number] if number < len(values) else None
    if parameter is None or parameter.shape != stored.size:
        return torch.zeros(stored.size, dtype=stored.properties.dtype)
    return torch.zeros_like(parameter.detach(), dtype=stored.properties.dtype)


def spread_state(weights: Tensors, state: dict[str, Any], parameters: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Any]]:
    """Return weights and state that every process has whole as a run holds them whose `parameters` are spread."""
    values = list(parameters.values())
    if not any(isinstance(value, DTensor) for value in values):
        return weights, state
    weights = {name: spread_like(value, parameters.get(name, value)) for name, value in weights.items()}
    kept = {
        n: {key: spread_like(value, values[n]) if value.shape == values[n].shape else value for key, value in own.items()}
        for n, own in state["optimizer"]["state"].items()
    }
    state = {**state, "optimizer": {**state["optimizer"], "state": kept}}
    if state["ema"]:
        shadow = [spread_like(value, like) for value, like in zip(state["ema"]["shadow_params"], values, strict=True)]
        state["ema"] = {**state["ema"], "shadow_params": shadow}
    return weights, state
