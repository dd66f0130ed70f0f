"""Models of transformers with every weight from safetensors, and a hash that tells weights apart."""

from __future__ import annotations

import hashlib
from typing import Any

from safetensors import SafetensorError
from torch import nn

from diffalign.core.errors import CheckpointError

UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)  # what transformers raises for a model that it cannot load


def whole(kind: Any, name: str, revision: str | None, **settings: Any) -> Any:
    """Return a model of transformers with every weight from safetensors; `kind` is its class or an auto class.

    Raises CheckpointError if some are not there: transformers would draw them at random. Its own errors, UNREADABLE, pass.
    """
    settings |= {"use_safetensors": True, "output_loading_info": True, "trust_remote_code": False}
    network, report = kind.from_pretrained(name, revision=revision, **settings)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(f"{name}: {len(missing)} weights of a {type(network).__name__} are not there, such as `{missing[0]}`")
    return network


def weights_hash(network: nn.Module) -> str:
    """Return a hash over the names, shapes and first numbers of all weights."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten()[:256].cpu().double().numpy().tobytes())
    return digest.hexdigest()
