"""Networks with every weight from sound safetensors, and hashes that tell weights apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError, shortened
from diffalign.core.tensor_files import check_numbers
from diffalign.core.weight_files import check_floating, check_whole

# What diffusers and transformers raise for a model that they cannot load.
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


def whole(kind: Any, name: str, revision: str | None, **settings: Any) -> Any:
    """Return a model of transformers with every weight from safetensors; `kind` is its class or an auto class.

    Raises CheckpointError if some are not there, since transformers would draw them at random, or are not finite. Its own errors,
    UNREADABLE, pass.
    """
    settings |= {"use_safetensors": True, "output_loading_info": True, "trust_remote_code": False}
    network, report = kind.from_pretrained(name, revision=revision, **settings)
    _refuse(name, network, report["missing_keys"], "are not there")
    check_finite(name, network)
    return network


def read_network(kind: Any, folder: Path, config: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """Return the network of class `kind` that a training has left in `folder`, every weight in its place and of sound numbers.

    `config` is that of the network it was trained from. Raises CheckpointError where the folder has another config, or weights that
    are missing, left over, damaged or unsound.
    """
    check_whole(folder)
    check_floating(folder)
    stored = read_mapping(folder / "config.json", CheckpointError).get("_class_name", kind.__name__)
    if stored != kind.__name__:
        raise CheckpointError(f"{folder / 'config.json'}: `_class_name` is {shortened(repr(stored))}; expected {kind.__name__}")
    try:
        network, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **settings)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder}: does not load as a {kind.__name__} ({error})") from error
    for name, value in (config or {}).items():
        if not name.startswith("_") and name in network.config and network.config[name] != value:
            raise CheckpointError(f"{folder}: made for another model: `{name}` is {network.config[name]}; expected {value}, as in its base")
    _refuse(str(folder), network, report["missing_keys"], "are not there")
    _refuse(str(folder), network, report["unexpected_keys"], "have no place")
    for name, parameter in network.named_parameters():
        check_numbers(str(folder), name, parameter.detach())
    return network


def check_finite(name: str, network: nn.Module) -> None:
    """Raise CheckpointError for a weight of the model `name` that is missing or not finite."""
    for key, value in network.named_parameters():
        fault = "not there" if value.is_meta else "not finite" if not _is_finite(value.detach()) else None
        if fault is not None:
            raise CheckpointError(f"{name}: the weight `{key}` of its {type(network).__name__} is {fault}")


def _is_finite(value: Tensor) -> bool:
    """Return whether a weight is finite, in one pass and without a copy; quantised ones of a byte always are."""
    if not value.numel() or not value.is_floating_point() or value.element_size() == 1:
        return True
    return all(bool(end.isfinite()) for end in value.aminmax())


def _refuse(name: str, network: nn.Module, keys: Any, fault: str) -> None:
    if odd := sorted(keys):
        raise CheckpointError(f"{name}: {len(odd)} weights of a {type(network).__name__} {fault}, such as `{odd[0]}`")


def weights_hash(network: nn.Module) -> str:
    """Return a hash over the names, shapes and numbers of all weights."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        add_tensor(digest, key, value)
    return digest.hexdigest()


def tensors_hash(tensors: Iterable[Tensor]) -> str:
    """Return a hash over the shapes and numbers of tensors, in their order."""
    digest = hashlib.sha256()
    for place, value in enumerate(tensors):
        add_tensor(digest, str(place), value)
    return digest.hexdigest()


def weights_mark(network: nn.Module) -> str:
    """Return a hash over the names, shapes and first numbers of all weights: what finished runs remember of a network they need."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten()[:256].cpu().double().numpy().tobytes())
    return digest.hexdigest()


def add_tensor(digest: Any, key: str, value: Tensor) -> None:
    """Add a tensor to a hash: its name, shape, dtype and all of its bytes."""
    digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
