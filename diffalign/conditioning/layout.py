"""What a user branch is made of in each family: the keys that the stock loader reads, their shapes, their values at the start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterFullImageProjection
from torch import Tensor, nn

from diffalign.errors import CheckpointError, ConfigError

State = Mapping[str, Mapping[str, Tensor]]  # {"image_proj": {...}, "ip_adapter": {...}}, as `load_ip_adapter` reads it
KINDS = {"unet": UNet2DConditionModel, "flux": FluxTransformer2DModel}
# The loader's names of the projector's layers, and the module's own.
RENAMED = {
    "unet": {"proj.0": "ff.net.0.proj", "proj.2": "ff.net.2", "proj.3": "norm"},
    "flux": {"proj": "image_embeds"},
}


def kind_of(denoiser: nn.Module) -> str:
    """Return the key of `KINDS` that a denoiser belongs to. Raises ConfigError for a class that takes no user branch."""
    for kind, cls in KINDS.items():
        if isinstance(denoiser, cls):
            return kind
    known = ", ".join(cls.__name__ for cls in KINDS.values())
    raise ConfigError(f"a user branch cannot be attached to a {type(denoiser).__name__}; supported are {known}")


def branched(denoiser: Any, kind: str) -> dict[str, str]:
    """Return {number in the file: name of the attention layer} of the layers that get a branch."""
    names = [name.removesuffix(".processor") for name in denoiser.attn_processors]
    if kind == "unet":
        crossed = [name for name in names if not name.endswith("attn1")]
        return {str(2 * number + 1): name for number, name in enumerate(crossed)}  # the loader counts the self-attentions, too
    if kind == "flux":
        names = [name for name in names if not name.startswith("single_transformer_blocks")]
    return {str(number): name for number, name in enumerate(names)}


def projector_of(denoiser: Any, kind: str) -> nn.Module:
    """Return the module that turns the tokens of an attached branch into what its attention reads."""
    return denoiser.encoder_hid_proj.image_projection_layers[0]


def parameters(denoiser: Any) -> dict[str, dict[str, nn.Parameter]]:
    """Return the parameters of an attached branch under the keys of `State`."""
    kind = kind_of(denoiser)
    renamed = {own: key for key, own in RENAMED[kind].items()}
    found: dict[str, dict[str, nn.Parameter]] = {"image_proj": {}, "ip_adapter": {}}
    for name, parameter in projector_of(denoiser, kind).named_parameters():
        layer, _, leaf = name.rpartition(".")
        found["image_proj"][f"{renamed.get(layer, layer)}.{leaf}".lstrip(".")] = parameter
    for number, name in branched(denoiser, kind).items():
        for own, parameter in denoiser.get_submodule(f"{name}.processor").named_parameters():
            found["ip_adapter"][f"{number}.{own.replace('_ip.0.', '_ip.')}"] = parameter
    return found


def shapes(denoiser: Any, width: int) -> dict[str, dict[str, torch.Size]]:
    """Return the shapes of a branch on `denoiser` for tokens of `width` numbers, under the keys of `State`."""
    kind = kind_of(denoiser)
    projector, attention = _parts(denoiser, kind, width)
    renamed = {own: key for key, own in RENAMED[kind].items()}
    found: dict[str, dict[str, torch.Size]] = {"image_proj": {}, "ip_adapter": attention}
    for name, value in projector.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        found["image_proj"][f"{renamed.get(layer, layer)}.{leaf}".lstrip(".")] = value.shape
    return found


def _parts(denoiser: Any, kind: str, width: int) -> tuple[nn.Module, dict[str, torch.Size]]:
    """Return the projector without weights, and the shapes of what stands in the attention layers."""
    config = denoiser.config
    layers = {number: denoiser.get_submodule(name) for number, name in branched(denoiser, kind).items()}
    sizes = {number: (layer.to_q.out_features, layer.to_k.in_features) for number, layer in layers.items()}
    with torch.device("meta"):
        if kind == "unet":
            projector: nn.Module = IPAdapterFullImageProjection(width, config.cross_attention_dim)
        else:
            projector = ImageProjection(width, config.joint_attention_dim, 4)
            sizes = {number: (outer, config.joint_attention_dim) for number, (outer, _) in sizes.items()}
    found = {}
    for number, size in sizes.items():
        for name in ("to_k_ip", "to_v_ip"):
            found[f"{number}.{name}.weight"] = torch.Size(size)
            if kind == "flux":
                found[f"{number}.{name}.bias"] = torch.Size(size[:1])
    return projector, found


def check(denoiser: Any, width: int, state: State) -> None:
    """Raise CheckpointError, naming the key, if `state` is no branch for this denoiser and tokens of `width` numbers."""
    expected = shapes(denoiser, width)
    for part, tensors in expected.items():
        given = state.get(part, {})
        if odd := sorted(tensors.keys() ^ given.keys()):
            lack = "lacks" if odd[0] in tensors else "has the unexpected"
            raise CheckpointError(f"the user branch {lack} {part}.{odd[0]}; it was made for another model than a {type(denoiser).__name__}")
        for key, shape in tensors.items():
            if given[key].shape != shape:
                raise CheckpointError(
                    f"the user branch has {part}.{key} of shape {tuple(given[key].shape)}; "
                    f"{tuple(shape)} was expected, for tokens of {width} numbers on this {type(denoiser).__name__}"
                )


def initial(denoiser: Any, width: int, seed: int) -> State:
    """Return a new branch, float32 on the CPU, drawn with `seed`: random but for V' and all biases, which are zero."""
    kind, generator = kind_of(denoiser), torch.Generator().manual_seed(seed)
    state = {part: {key: _fill(key, shape, generator) for key, shape in keys.items()} for part, keys in shapes(denoiser, width).items()}
    if kind == "unet":
        for number, name in branched(denoiser, kind).items():
            layer = denoiser.get_submodule(name).to_k
            # As IP-Adapters begin: the user's tokens are looked up as words are.
            state["ip_adapter"][f"{number}.to_k_ip.weight"] = getattr(layer, "base_layer", layer).weight.detach().float().cpu().clone()
    return state


def _fill(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return what stands at `key` in a new branch: that of a new torch layer but for the zeros."""
    if "to_v_ip" in key or key.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return (2.0 * torch.rand(shape, generator=generator) - 1.0) / math.sqrt(shape[-1])
