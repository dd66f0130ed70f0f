"""What a user branch is made of in each family: the keys that the stock loader reads, their shapes, their values at the start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterFullImageProjection, IPAdapterTimeImageProjection
from torch import Tensor, nn

from diffalign.core.errors import CheckpointError, ConfigError

State = Mapping[str, Mapping[str, Tensor]]  # {"image_proj": {...}, "ip_adapter": {...}}, as `load_ip_adapter` reads it
KINDS = {"unet": UNet2DConditionModel, "sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel, "pixart": PixArtTransformer2DModel}
# The projector's own names of its layers, and the loader's.
FULL = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "proj.3"}
RENAMED = {"unet": FULL, "sd3": {}, "flux": {"image_embeds": "proj"}, "pixart": FULL}
IMAGES = 4  # tokens that Flux's projector makes of a row, as its loader takes for granted
QUERIES = 16  # tokens of SD3's resampler
HEAD = 64  # numbers of each of its heads, as its loader takes for granted
SHARP = 32.0  # scale of SD3's user keys, where the image's have none
READ = {"unet": "cross_attention_dim", "flux": "joint_attention_dim", "pixart": "caption_channels"}  # as wide as what attention reads


def kind_of(denoiser: nn.Module) -> str:
    """Return the key of `KINDS` that a denoiser belongs to. Raises ConfigError for a class that takes no user branch."""
    for kind, cls in KINDS.items():
        if isinstance(denoiser, cls):
            return kind
    supported = ", ".join(cls.__name__ for cls in KINDS.values())
    raise ConfigError(f"a user branch cannot be attached to a {type(denoiser).__name__}; supported are {supported}")


def branched(denoiser: Any) -> dict[str, str]:
    """Return {number in the file: name of the attention layer} of the layers that get a branch."""
    kind = kind_of(denoiser)
    if kind == "pixart":
        return {}
    names = [name.removesuffix(".processor") for name in denoiser.attn_processors]
    if kind == "unet":
        crossed = [name for name in names if not name.endswith("attn1")]
        return {str(2 * number + 1): name for number, name in enumerate(crossed)}  # the loader counts the self-attentions, too
    # Neither Flux's single blocks, which have no branch, nor the attention inside SD3's own projector.
    joint = [name for name in names if name.startswith("transformer_blocks")]
    return {str(number): name for number, name in enumerate(joint)}


def projector_of(denoiser: Any) -> nn.Module:
    """Return the module that turns the tokens of an attached branch into what its attention reads."""
    kind = kind_of(denoiser)
    if kind == "sd3":
        return denoiser.image_proj
    return denoiser.user_projection if kind == "pixart" else denoiser.encoder_hid_proj.image_projection_layers[0]


def parameters(denoiser: Any) -> dict[str, dict[str, nn.Parameter]]:
    """Return the parameters of an attached branch under the keys of `State`."""
    attention = {}
    for number, name in branched(denoiser).items():
        for own, parameter in denoiser.get_submodule(f"{name}.processor").named_parameters():
            attention[f"{number}.{own.replace('_ip.0.', '_ip.')}"] = parameter
    # An adapter that was added later may stand around the projector's layers.
    plain = {name.replace(".base_layer", ""): p for name, p in projector_of(denoiser).named_parameters() if ".lora_" not in name}
    return {"image_proj": _keyed(plain, kind_of(denoiser)), "ip_adapter": attention}


def _keyed(tensors: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a projector's tensors under the loader's keys."""
    layers = {name: name.rpartition(".") for name in tensors}
    return {f"{RENAMED[kind].get(layer, layer)}{dot}{leaf}": tensors[name] for name, (layer, dot, leaf) in layers.items()}


def shapes(denoiser: Any, width: int) -> dict[str, dict[str, torch.Size]]:
    """Return the shapes of a branch on `denoiser` for tokens of `width` numbers, under the keys of `State`."""
    kind, config = kind_of(denoiser), denoiser.config
    projector = _keyed({name: value.shape for name, value in blank_projector(denoiser, width, "meta").state_dict().items()}, kind)
    layers = branched(denoiser)
    if kind == "sd3":
        hidden, side = denoiser.inner_dim, config.attention_head_dim
        with torch.device("meta"):
            processor = SD3IPAdapterJointAttnProcessor2_0(hidden, hidden, side, projector["proj_in.weight"][0])
        one = {name: value.shape for name, value in processor.state_dict().items()}
        return {"image_proj": projector, "ip_adapter": {f"{number}.{name}": shape for number in layers for name, shape in one.items()}}
    attention = {}
    for number, name in layers.items():
        outer, inner = denoiser.get_submodule(name).to_q.out_features, config[READ[kind]]
        for leaf in ("to_k_ip", "to_v_ip"):
            attention[f"{number}.{leaf}.weight"] = torch.Size((outer, inner))
            if kind == "flux":
                attention[f"{number}.{leaf}.bias"] = torch.Size((outer,))
    return {"image_proj": projector, "ip_adapter": attention}


def blank_projector(denoiser: Any, width: int, device: torch.device | str) -> nn.Module:
    """Return the projector of tokens of `width` numbers for `denoiser`, with whatever weights."""
    kind, config = kind_of(denoiser), denoiser.config
    with torch.device(device):
        if kind == "sd3":
            hidden = max(HEAD, min(1280, denoiser.inner_dim) // HEAD * HEAD)
            return IPAdapterTimeImageProjection(width, denoiser.inner_dim, hidden, heads=hidden // HEAD, num_queries=QUERIES)
        if kind == "flux":
            return ImageProjection(width, config[READ[kind]], IMAGES)
        return IPAdapterFullImageProjection(width, config[READ[kind]])


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
        for number, name in branched(denoiser).items():
            # As IP-Adapters begin: the user's tokens are looked up as words are.
            state["ip_adapter"][f"{number}.to_k_ip.weight"] = _weight(denoiser.get_submodule(name).to_k)
    elif kind == "pixart":
        state["image_proj"]["proj.3.weight"].zero_()
    elif kind == "sd3":
        _silence(state)
    return state


def _fill(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return what stands at `key` in a new branch: that of a new torch layer but for the zeros."""
    if "to_v_ip" in key or key.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return (2.0 * torch.rand(shape, generator=generator) - 1.0) / math.sqrt(shape[-1])


def _weight(layer: Any) -> Tensor:
    """Return a copy of the weight of a linear layer, beneath its adapter."""
    layer = getattr(layer, "base_layer", layer)
    weight = layer.weight.detach()
    if weight.is_meta:  # of an outline, which has no numbers
        return torch.zeros(weight.shape)
    if type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point():
        return weight.to("cpu", torch.float32, copy=True)
    # Quantised, in one of several ways; all of them multiply.
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    with torch.no_grad():
        return layer(torch.eye(layer.in_features, device=weight.device, dtype=dtype)).T.to("cpu", torch.float32).contiguous()


def _silence(state: dict[str, dict[str, Tensor]]) -> None:
    """Make a new branch of SD3 add nothing.

    Its attention looks at the image's keys and the user's at once, so V' = 0 alone would leave a second self-attention. Here the image's
    keys are zeros, and the user's are long and come in opposite pairs: whatever the query, one of them points its way, and takes the
    softmax for itself. Random tokens without their opposites miss some queries (several percent off the base instead of 1e-6).
    """
    projector = state["image_proj"]
    half = projector["latents"][:, : QUERIES // 2] * math.sqrt(3.0 * projector["latents"].shape[-1])  # of unit variance
    projector["latents"] = torch.cat([half, -half], dim=1)
    for key, value in projector.items():
        if key.endswith(("to_out.0.weight", "ff.net.2.weight")):
            value.mul_(0.1)  # what the layers add is much the same for all tokens, and would spoil the pairs
    for key, value in state["ip_adapter"].items():
        if key.endswith(("norm_ip.linear.weight", ".norm_k.weight")):
            value.zero_()
        elif key.endswith("norm_ip_k.weight"):
            value.fill_(SHARP)


def trains(key: str) -> bool:
    """Return whether the parameter at a key of `State` is trained: no bias is, nor what silences SD3's branch."""
    return not key.endswith(("bias", ".norm_k.weight", ".norm_ip_k.weight"))
