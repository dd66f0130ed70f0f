"""What a personalised run leaves besides its branch: the user encoder, and files of users' tokens; safetensors, written whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.core import tensor_files as files
from diffalign.core.documents import parse_json
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.models.users.encoders import Sizes, UserEncoder, make
from diffalign.models.users.settings import USER_ENCODERS

BRANCH, ENCODER = "ip_adapter.safetensors", "user_encoder.safetensors"


def save_encoder(encoder: UserEncoder, file: Path) -> None:
    """Write an encoder with the settings and sizes that it is built from."""
    kind = next(name for name, settings in USER_ENCODERS.items() if settings is type(encoder.settings))
    facts = {"encoder": kind, "settings": json.dumps(asdict(encoder.settings)), "sizes": json.dumps(asdict(encoder.sizes))}
    files.write(file, {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}, facts)


def load_encoder(file: Path) -> UserEncoder:
    """Return the encoder in a file, in eval mode and without gradients. Raises CheckpointError if there is none."""
    tensors, facts = files.read(file)
    if facts.get("encoder") not in USER_ENCODERS:
        raise CheckpointError(f"{file}: holds no user encoder; expected the {ENCODER} of a run of `ppd`")
    try:
        sizes: dict[str, Any] = parse_json(facts["sizes"], f"{file}, sizes", CheckpointError)
        settings = USER_ENCODERS[facts["encoder"]](**parse_json(facts["settings"], f"{file}, settings", CheckpointError))
        with torch.device("meta"):  # whatever sizes the file claims, nothing is allocated for them
            encoder = make(settings, Sizes(**{**sizes, "users": tuple(sizes["users"])}))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{file}: does not say what encoder of `{facts['encoder']}` it holds ({error!r})") from error
    if odd := [name for name, value in tensors.items() if value.dtype != torch.float32 or not value.isfinite().all()]:
        raise CheckpointError(f"{file}: {odd[0]} is not of finite float32 numbers")
    try:
        # Clones, since a file's tensors begin anywhere in memory, and the kernels round otherwise there.
        encoder.load_state_dict({name: value.clone() for name, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: its weights are not those of the encoder it names ({error})") from error
    return encoder.requires_grad_(False).eval()


def save_tokens(tokens: Tensor, file: Path, encoder: str, **facts: str) -> None:
    """Write a user's tokens (U, D); `encoder` is the fingerprint of what made them."""
    files.write(file, {"tokens": tokens.detach().float().cpu().contiguous()}, {"encoder": encoder, **facts})


def load_tokens(file: Path, encoder: str) -> Tensor:
    """Return a user's tokens (U, D), finite. Raises CheckpointError if the file holds none, or those of another encoder than `encoder`."""
    tensors, facts = files.read(file)
    if set(tensors) != {"tokens"}:
        raise CheckpointError(f"{file}: holds no user's tokens; expected a file of `diffalign user embed`, or of `save`")
    if facts.get("encoder") != encoder:
        raise CheckpointError(
            f"{file}: made by the user encoder {facts.get('encoder')}, and this run has {encoder}: tokens mean nothing to another run; "
            "embed the user's pairs again with this one"
        )
    if not tensors["tokens"].isfinite().all():
        raise CheckpointError(f"{file}: the tokens are not finite; embed the user's pairs again")
    return tensors["tokens"]
