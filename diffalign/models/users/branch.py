"""The user branch: decoupled attention beside the text's, in the form of a diffusers IP-Adapter (PPD, 2501.06655).

`softmax(Q K^T) V + softmax(Q K'^T) V'` before the output projection; the query is shared, K' and V' come from the user's projected tokens.
Only these and the projection are trained; V' starts at zero, so that attaching changes nothing, and no bias is trained, so that the
zero user stays the base model wherever the projection has no tokens of its own (UNets and Flux; SD3's has).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from torch import Tensor

from diffalign.core import tensor_files as files
from diffalign.core.errors import CheckpointError
from diffalign.models.users.layout import State, blank_projector, branched, check, initial, kind_of, parameters, trains


@dataclass(slots=True)
class Switch:
    """An attached branch, found without a walk over the network."""

    kind: str
    width: int  # of a token
    layers: tuple[Any, ...]  # whose processors hold the branch; others take their place where another kernel is chosen
    full: float  # the scale of strength 1
    strength: float = 1.0

    def turn(self, strength: float) -> None:
        """Set the strength, a multiple of the scale that the stock loader sets."""
        self.strength = strength
        for layer in self.layers:
            processor = layer.processor
            processor.scale = [strength * self.full] if isinstance(processor.scale, list) else strength * self.full


def attach(denoiser: Any, width: int, state: State | None = None, *, seed: int = 0) -> None:
    """Put a user branch for tokens of `width` numbers on a denoiser, from `state`, else a new one, drawn with `seed`, that changes nothing.

    The branch lies in float32 on the denoiser's device. Afterwards its weights get gradients, and neither its biases nor anything else of
    the denoiser does. Raises ConfigError for a denoiser that takes no branch, CheckpointError for a state of another width or model.
    """
    kind = kind_of(denoiser)
    if state is None:
        state = initial(denoiser, width, seed)
    else:
        check(denoiser, width, state)
    device = denoiser.device
    denoiser.requires_grad_(False)
    with device:  # on the meta device, too, where nothing can be copied to later
        _load(denoiser, kind, width, state)
    for part, found in parameters(denoiser).items():
        for key, parameter in found.items():
            # Again, since the loader rounds to the denoiser's precision.
            parameter.data = state[part][key].detach().to(device, torch.float32, copy=True)
            parameter.requires_grad_(trains(key))
    layers = tuple(denoiser.get_submodule(name) for name in branched(denoiser).values())
    denoiser.user_branch = Switch(kind, width, layers, full=0.5 if kind == "sd3" else 1.0)


def _load(denoiser: Any, kind: str, width: int, state: State) -> None:
    """Build the modules of the branch, as the stock loader does."""
    plain = {part: {key: value.to(denoiser.device) for key, value in tensors.items()} for part, tensors in state.items()}
    if kind == "pixart":
        denoiser.user_projection = blank_projector(denoiser, width, denoiser.device)
    elif kind == "sd3":
        denoiser.image_proj = None  # whose attention the loader would count as the transformer's
        denoiser._load_ip_adapter_weights(plain, low_cpu_mem_usage=False)
    elif kind == "flux":
        denoiser._load_ip_adapter_weights(plain, low_cpu_mem_usage=False)
    else:
        # The UNet's own loader ends with a cast of all weights, which would round float32 adapters and which quantised weights refuse.
        denoiser.encoder_hid_proj = None
        denoiser.set_attn_processor(denoiser._convert_ip_adapter_attn_to_diffusers([plain], low_cpu_mem_usage=False))
        projector = denoiser._convert_ip_adapter_image_proj_to_diffusers(plain["image_proj"], low_cpu_mem_usage=False)
        denoiser.encoder_hid_proj = MultiIPAdapterImageProjection([projector])
        denoiser.config.encoder_hid_dim_type = "ip_image_proj"


def attached(denoiser: Any) -> bool:
    """Return whether a denoiser has a user branch."""
    return getattr(denoiser, "user_branch", None) is not None


def set_strength(denoiser: Any, strength: float) -> None:
    """Scale what the branch adds: 1 is the strength it is trained at, which the stock loader sets by itself; 0 is off."""
    denoiser.user_branch.turn(strength)


@contextlib.contextmanager
def disabled(denoiser: Any) -> Iterator[None]:
    """Run the block with the branch off, as the base model; it is as strong as before afterwards, also on an error.

    Exact but for Flux in half precision, whose processors with and without a branch lay out the same numbers otherwise, which a CPU rounds
    otherwise.
    """
    switch: Switch = denoiser.user_branch
    strength = switch.strength
    switch.turn(0.0)
    try:
        yield
    finally:
        switch.turn(strength)


def forward_arguments(denoiser: Any, tokens: Tensor) -> dict[str, Any]:
    """Return what the denoiser's forward takes besides its own arguments, for tokens (N, U, D); nothing for PixArt (see `appended`).

    A UNet's "added_cond_kwargs" are to be merged with those it has. A half-precision denoiser is to be called under autocast, as the branch
    is float32.
    """
    switch: Switch = denoiser.user_branch
    tokens = tokens.to(denoiser.device, torch.float32)
    if switch.kind == "unet":
        return {"added_cond_kwargs": {"image_embeds": [tokens[:, None]]}}
    if switch.kind == "pixart" or (switch.kind == "sd3" and not switch.strength):
        return {}
    if switch.kind == "sd3":
        return {"joint_attention_kwargs": {"ip_adapter_image_embeds": tokens}}
    if not switch.strength:
        return {"joint_attention_kwargs": {"ip_hidden_states": []}}  # at scale 0 it would be computed all the same
    return {"joint_attention_kwargs": {"ip_adapter_image_embeds": [tokens]}}


def appended(denoiser: Any, embeds: Tensor, mask: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return PixArt's prompt embeddings (N, L, C) and mask (N, L) with tokens (N, U, D) behind the words, scaled by the strength.

    Nothing is appended for nobody (None) or with the branch off, and the words of a zero user are masked: nobody beside users in a batch
    is the base model, too. A new branch appends zeros: empty words, which take some of the attention, so that a user is not quite the
    base model at first.
    """
    switch: Switch = denoiser.user_branch
    if tokens is None or not switch.strength:
        return embeds, mask
    tokens = tokens.to(denoiser.device, torch.float32)
    words = switch.strength * denoiser.user_projection(tokens)
    has_user = tokens.flatten(1).any(dim=1)[:, None].expand(-1, words.shape[1])
    return torch.cat([embeds, words.to(embeds)], dim=1), torch.cat([mask, has_user.to(mask)], dim=1)


def pipeline_arguments(pipe: Any, tokens: Tensor | None, guided: bool) -> dict[str, Any]:
    """Return what a stock pipeline's call takes to draw for a user's tokens (U, D), or for nobody, whatever the number of prompts.

    `guided` says whether the call runs classifier-free guidance; its other half is the zero user. Nothing for PixArt (see `appended`).
    """
    denoiser = pipe.unet if "unet" in pipe.components else pipe.transformer
    switch: Switch = denoiser.user_branch
    if switch.kind == "pixart" or (switch.kind == "sd3" and tokens is None):
        return {}  # SD3's zero user is somebody
    user = torch.zeros(1, switch.width) if tokens is None else tokens
    user = user[None].detach().to(denoiser.device, torch.float32)
    nobody = torch.zeros_like(user)
    if switch.kind == "flux":
        return {"ip_adapter_image_embeds": [user], "negative_ip_adapter_image_embeds": [nobody]}
    both = torch.cat([nobody, user]) if guided else user
    return {"ip_adapter_image_embeds": both if switch.kind == "sd3" else [both[:, None]]}


def state_of(denoiser: Any) -> State:
    """Return a copy of the branch on the CPU: what the stock loader would read back."""
    return {
        part: {key: value.detach().to("cpu", copy=True).contiguous() for key, value in found.items()}
        for part, found in parameters(denoiser).items()
    }


def save(denoiser: Any, file: Path, metadata: Mapping[str, str]) -> None:
    """Write the branch as the safetensors file that a stock pipeline's `load_ip_adapter` reads, under a temporary name first."""
    tensors = {f"{part}.{key}": value for part, found in state_of(denoiser).items() for key, value in found.items()}
    files.write(file, tensors, metadata)


def read(file: Path) -> tuple[State, dict[str, str]]:
    """Return the branch in a file, and its metadata. Raises CheckpointError if there is none, or it is no branch of finite numbers."""
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    tensors, metadata = files.read(file)
    for name, value in tensors.items():
        part, _, key = name.partition(".")
        if part not in state:
            raise CheckpointError(f"{file}: has {name}; keys of a user branch begin with image_proj or ip_adapter")
        files.check_numbers(str(file), name, value)
        state[part][key] = value
    return state, metadata
