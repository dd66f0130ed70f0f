"""A model as it would be trained, from its config files alone: its tensors have shapes and no numbers, and computing with them is free.

PyTorch's fake tensors stand on any device, also where there is none.
"""

from __future__ import annotations

import contextlib
import importlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.inputs import REFERENCE
from diffalign.data.table import is_table
from diffalign.data.users import user_names
from diffalign.methods.builders.common import DTYPES
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.image import equip, settings
from diffalign.methods.builders.lora import check_base_loras, check_quantised
from diffalign.methods.builders.users import expected_sizes
from diffalign.methods.checks import check_image
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe
from diffalign.models.backbones.folders import Layout, is_local, names_class, resolve
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.backbones.quantised_file import is_quantised, quantised_denoiser
from diffalign.models.backbones.single_file import denoiser_folder
from diffalign.models.backbones.table import BACKBONES, model_index, part_class, part_dtypes
from diffalign.models.prompted import networks, text_encoders
from diffalign.models.weights import UNREADABLE


@dataclass(frozen=True, slots=True)
class Outline:
    """A model without numbers, and the mode in which it computes."""

    kind: str  # class of the stock pipeline
    layout: Layout
    parts: Mapping[str, Any]  # of the pipeline, by name
    model: Pretrained
    mode: FakeTensorMode


def outline(config: TrainConfig, recipe: Recipe, device: torch.device) -> Outline:
    """Return what `diffalign train` would train. Raises CheckpointError for a folder or hub id that is no supported pipeline."""
    name = resolve(config.pretrained_model_name_or_path)
    index, layout = model_index(name, config.revision)
    if not is_local(name):  # of which nothing was known before
        check_image(config, recipe, layout)
    kind, parts = str(index["_class_name"]), {}
    own_vae = config.pretrained_vae_model_name_or_path is None
    dtypes = part_dtypes(layout, DTYPES[config.mixed_precision], full=recipe.tuning == "full" and not config.full_bf16, own_vae=own_vae)
    for part, value in index.items():
        if names_class(value):
            library, class_name = value
            wanted = part in (layout.component, *layout.needed, *layout.optional) and class_name is not None
            where = {"subfolder": part, "revision": config.revision}
            parts[part] = _part(library, str(class_name), name, where, dtypes.get(part, torch.float32)) if wanted else None
    if (other := config.pretrained_vae_model_name_or_path) is not None:
        parts["vae"] = _part("diffusers", AutoencoderKL.__name__, resolve(other), {}, dtypes["vae"])
    if config.denoiser is not None:
        parts[layout.component] = _stand_in(config, recipe, parts[layout.component], dtypes[layout.component])
    flags = {key: value for key, value in index.items() if key not in parts and not key.startswith("_")}
    options = BACKBONES[layout.family].pipeline_options
    pipe = getattr(importlib.import_module("diffusers"), kind)(**{**flags, **parts, **options})
    family: Any = _forced(BACKBONES[layout.family])
    check_base_loras(config, pipe)
    model = family(pipe, config.pretrained_model_name_or_path, DTYPES[config.mixed_precision], settings(config))
    sizes = None if recipe.users is None else expected_sizes(recipe, model, _users(config, recipe))
    equip(
        config, recipe, model, evidence=sizes, kernels=False
    )  # another kernel keeps no more than what is counted, and may be at home elsewhere
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # tokens have numbers
    for part in (parts | {layout.component: model.denoiser}).values():
        if isinstance(part, nn.Module):
            _place(part, mode, device)
    return Outline(kind, layout, parts, model, mode)


def _stand_in(config: TrainConfig, recipe: Recipe, network: Any, dtype: torch.dtype) -> Any:
    """Return the denoiser of the config's file or folder in place of the model's own. Raises CheckpointError for one of another kind."""
    path = Path(str(config.denoiser))
    if is_quantised(path):
        check_quantised(config, recipe)
        return quantised_denoiser(path, network.config, type(network), dtype, numbers=False)
    denoiser_folder(path, network.config, type(network))
    return network


def check_files(config: TrainConfig, recipe: Recipe) -> None:
    """Raise ConfigError or CheckpointError for a denoiser's or LoRA files of the config that do not fit its model, or other keys."""
    outline(config, recipe, torch.device("cpu"))


def _users(config: TrainConfig, recipe: Recipe) -> tuple[str, ...]:
    """Return the users of the training. Raises ConfigError where their number decides how much is trained, and there is no table yet."""
    if recipe.users is not None and not recipe.users().of_users:
        return ()
    if is_table(config.dataset_name):
        return user_names(open_dataset(config, recipe))
    if recipe.users is not None and recipe.users.name in ("mixture", "one_hot"):
        raise ConfigError(
            f"`user_encoder` {recipe.users.spec} has a row for each user, and {config.dataset_name} is no table yet; import it first"
        )
    return ()


def _part(library: str, kind: str, name: str, where: dict[str, Any], dtype: torch.dtype) -> Any:
    """Return a part of a pipeline: a network on the meta device, or a tokenizer or scheduler as it is."""
    kind_class = part_class(library, kind)
    if not issubclass(kind_class, nn.Module):
        return kind_class.from_pretrained(name, **where)
    network: Any = kind_class  # which the test above would narrow to a bare Module
    make, read = (network.from_config, network.load_config) if library == "diffusers" else (network, network.config_class.from_pretrained)
    try:
        config = read(name, **where)
        with torch.device("meta"):
            return nn.Module.to(make(config), dtype)  # the classes' own methods warn of it
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no config of a {kind} ({error})") from error


def _place(module: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Put the tensors of a network on the meta device to `device`, still without numbers; on meta there is no mixed precision."""
    placed: dict[int, nn.Parameter] = {}  # some weights are shared

    def place(tensor: Tensor) -> Tensor:
        return mode.fake_tensor_converter.from_meta_and_device(mode, torch.empty_like(tensor, device="meta"), device)

    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if id(parameter) not in placed:
                placed[id(parameter)] = nn.Parameter(place(parameter.detach()), parameter.requires_grad)
            setattr(layer, name, placed[id(parameter)])
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(layer, name, place(buffer))


def _forced(kind: type[Pretrained]) -> type[Pretrained]:
    """Return a family whose mixed precision is a GPU's also where there is none; `torch.autocast` would switch itself off."""

    @contextlib.contextmanager
    def autocast(self: Pretrained) -> Iterator[None]:
        device, before = self.device.type, torch.is_autocast_enabled(self.device.type)
        dtype = torch.get_autocast_dtype(device)
        torch.set_autocast_enabled(device, self.precision != torch.float32)
        torch.set_autocast_dtype(device, self.precision)
        try:
            yield
        finally:
            torch.set_autocast_enabled(device, before)
            torch.set_autocast_dtype(device, dtype)
            torch.clear_autocast_cache()

    return type(kind.__name__, (kind,), {"_autocast": autocast})


@dataclass(slots=True)
class Kept:
    """Counts the bytes that autograd keeps for the backward pass, besides those of `known` tensors; each memory counts once."""

    known: Iterable[Tensor]
    bytes: int = 0
    largest: int = 0  # of what a checkpointed block keeps while it is run again
    _seen: dict[int, Any] = field(default_factory=dict)  # storages, held so that none takes the place of another

    def __post_init__(self) -> None:
        for tensor in self.known:
            self._seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is kept; a hook for `saved_tensors_hooks`."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.bytes += storage.nbytes()
        return tensor

    def block(self, module: Any, *inputs: Any) -> Any:
        """Run a block as gradient checkpointing does: only its inputs are kept, and its own memory is needed once at a time."""
        for value in inputs:
            if isinstance(value, Tensor):
                self.pack(value)
        inner = Kept([], _seen=dict(self._seen))
        with torch.autograd.graph.saved_tensors_hooks(inner.pack, lambda kept: kept):
            output = module(*inputs)
        self.largest = max(self.largest, inner.bytes)
        return output


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made and held, now and at most, besides those of `known` tensors."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operator returns, until its last user lets it go."""
        output = func(*args, **(kwargs or {}))
        for storage in (value.untyped_storage() for value in tree_leaves(output) if isinstance(value, Tensor)):
            if storage._cdata not in self._alive:
                self._alive.add(storage._cdata)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return output

    def _free(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self._change(-size)

    def _change(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


class FusedAttention(TorchFunctionMode):
    """Attention that keeps what the fused kernels of a GPU keep: queries, keys, values, output and a number a row, not the matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `scaled_dot_product_attention`, which asks the device which kernel fits."""
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _fused(*args, **(kwargs or {}))


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **more: Any
) -> Tensor:
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (x.to(dtype) for x in (query, key, value))
        attn_mask = attn_mask.to(dtype) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=more.get("scale"))[0]


def _copies(model: Pretrained) -> int:
    """Return the bytes of the half-precision copies of float32 weights that autocast holds until the forward pass ends."""
    if model.precision == torch.float32:
        return 0
    large = (p for layer in model.denoiser.modules() if isinstance(layer, nn.Linear | nn.Conv2d) for p in layer.parameters(recurse=False))
    return sum(p.numel() * model.precision.itemsize for p in large if p.requires_grad and p.dtype == torch.float32)


def condition_of(drawn: Outline, images: int, size: tuple[int, int], *, inputs: bool) -> dict[str, Tensor]:
    """Return what the denoiser is told of a prompt for each of `images`, and with `inputs` of input pictures."""
    model, prompts = drawn.model, ["a prompt"] * images
    with drawn.mode, model.device:
        if not (inputs or drawn.layout.picture == "needed"):
            return dict(model.encode_prompt(prompts))
        seen, latent = model.seen_size(*size), model.latent_shape(*model.reference_size(*size))
    pictures = None if seen is None else torch.zeros(images, 3, *seen, dtype=torch.uint8)  # which have numbers, as tokens have
    with drawn.mode, model.device:
        return {**model.encode_edit(prompts, pictures), REFERENCE: torch.zeros(images, *latent)}


def activations(config: TrainConfig, drawn: Outline, images: int, *, fused: bool = True, inputs: bool = False, spread: bool = False) -> int:
    """Return the bytes that a forward pass of the policy on `images` keeps for its backward pass, with `inputs` on input pictures, too.

    A network that is `spread` over processes keeps half-precision copies of its weights no longer than a checkpointed block.
    """
    model, denoiser = drawn.model, drawn.model.denoiser
    kept = Kept([*denoiser.parameters(), *denoiser.buffers()])
    if config.gradient_checkpointing:
        for network in networks(denoiser):
            network.enable_gradient_checkpointing(kept.block)  # pyright: ignore[reportCallIssue]  # a Module's attributes are untyped
        for encoder in text_encoders(denoiser).values():
            encoder._set_gradient_checkpointing(gradient_checkpointing_func=kept.block)
        kept.largest = 0 if spread else _copies(model)
    denoiser.train()
    side = config.resolution or model.resolution
    prompts = condition_of(drawn, images, (side, side), inputs=inputs)
    with drawn.mode, model.device, FusedAttention() if fused else contextlib.nullcontext():
        condition = {**prompts, "conditioning_image": torch.zeros(images, 3, side, side)}
        x, t = torch.zeros(images, *model.latent_shape(side, side)), torch.full((images,), 0.5)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value):
            (model.predict(denoiser, x, t, condition).float() - x).square().mean()
    return kept.bytes + kept.largest


def encoding(drawn: Outline, size: tuple[int, int]) -> int:
    """Return the bytes that the VAE works in while it encodes as many images of a size (height, width) in pixels as it reads at once."""
    model, vae = drawn.model, drawn.parts["vae"]
    count, held = model.encoded_at_once(*size), Held([*vae.parameters(), *vae.buffers()])
    with drawn.mode, model.device, torch.no_grad(), held:
        model.encode_at_once(torch.zeros(count, 3, *size), torch.zeros(count, *model.latent_shape(*size)))
    return held.most
