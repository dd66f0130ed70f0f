"""Negative guidance (Diffusion-NPO) in stock pipelines: one network, whose unconditional branch runs with a negative adapter.

e = e_neg + g (e_pos - e_neg), theta_pos = theta + eta, theta_neg = theta + alpha eta + beta delta: eta is what the positive adapter
adds to the weights (or nothing), delta what the negative one adds. The pipeline calls the network as often as in plain guidance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from peft.tuners.lora.layer import Linear, LoraLayer, _ConvNd
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from diffalign.core import tensor_files
from diffalign.core.errors import CheckpointError, ConfigError, did_you_mean
from diffalign.core.keys import ANY
from diffalign.core.runs import Run
from diffalign.models.adapter_files import METADATA, WEIGHTS
from diffalign.models.adapters import load_lora

ADAPTER = "negative_guidance"  # the name under which a file's adapter is loaded

# Slices of a layer's table of weights, whose rows are negative, positive, negative: what the halves of a batch are.
_NEGATIVE, _POSITIVE, _NEGATIVE_FIRST, _POSITIVE_FIRST = slice(0, 1), slice(1, 2), slice(0, 2), slice(1, 3)


_VARIANTS = ("Pipeline", "Img2ImgPipeline", "InpaintPipeline")
# The name of a pipeline's network, and its batch: None for branches one after another, in `cache_context("cond")` and `("uncond")`.
PIPELINES: dict[str, tuple[str, slice | None]] = {
    **{f"{name}{variant}": ("unet", _NEGATIVE_FIRST) for name in ("StableDiffusion", "StableDiffusionXL") for variant in _VARIANTS},
    **{f"StableDiffusion3{variant}": ("transformer", _NEGATIVE_FIRST) for variant in _VARIANTS},
    **{
        f"{name}Pipeline": ("transformer", _NEGATIVE_FIRST)
        for name in ("PixArtAlpha", "PixArtSigma", "Sana", "HiDreamImage", "HunyuanDiT", "CogVideoX")
    },
    **{f"{name}Pipeline": ("transformer", None) for name in ("Flux", "Flux2Klein", "QwenImage", "CogView4", "OvisImage", "Wan")},
    **{f"QwenImageEdit{version}Pipeline": ("transformer", None) for version in ("", "Plus")},
    "KolorsPipeline": ("unet", _NEGATIVE_FIRST),
    "StableCascadePriorPipeline": ("prior", _POSITIVE_FIRST),
    "StableCascadeDecoderPipeline": ("decoder", _POSITIVE_FIRST),
}


@contextmanager
def negative_guidance(
    pipe: Any, negative: str | Path, *, positive: str | None = None, alpha: float = 1.0, beta: float = 1.0
) -> Iterator[None]:
    """Run the block with negative guidance, see `attach`; afterwards, also after an error, the pipeline is as it was before."""
    calls, undo = _attach(pipe, negative, positive, alpha, beta)
    with undo:
        yield
        calls.finish()


def attach(pipe: Any, negative: str | Path, *, positive: str | None = None, alpha: float = 1.0, beta: float = 1.0) -> Callable[[], None]:
    """Apply negative guidance to a stock pipeline for good; return the function that takes it off again.

    `negative` is the name of a loaded adapter, or a LoRA file or a folder with `pytorch_lora_weights.safetensors`, which is loaded and,
    when taken off, deleted. `positive` is the name of a loaded adapter; without one it is the one active adapter besides `negative`, or
    else the base weights. `alpha` in [0, 1] is how much of the positive adapter the negative branch keeps (no effect without one),
    `beta` in [0, 1] weighs the negative adapter (larger is allowed). Weights given to `set_adapters` count on top.

    Raises ConfigError for pipelines not in `PIPELINES`, DoRA, fused or switched-off adapters, CheckpointError for a file that does not fit
    the network or names another base. The pipeline raises ConfigError when called without guidance (where the branches come one after
    another a step later, or at the end of the block), or after adapters were loaded, deleted, activated, fused or switched off in the
    meantime.
    """
    _, undo = _attach(pipe, negative, positive, alpha, beta)
    return undo.close


def _attach(pipe: Any, negative: str | Path, positive: str | None, alpha: float, beta: float) -> tuple[_Calls, ExitStack]:
    kind = type(pipe).__name__
    if kind not in PIPELINES or (kind == "WanPipeline" and pipe.transformer_2 is not None):
        raise ConfigError(f"negative guidance cannot tell the branches of this {kind}; known (with one network): {', '.join(PIPELINES)}")
    component, batch = PIPELINES[kind]
    if not all(0 <= weight < math.inf for weight in (alpha, beta)):
        raise ConfigError(f"`alpha` is {alpha}, `beta` {beta}; expected finite numbers >= 0")
    network = getattr(pipe, component)
    with ExitStack() as stack:
        name = str(negative) if str(negative) in _adapters(network) else _load(pipe, network, component, Path(negative), stack)
        positive = _positive(network, name, positive)
        weights = {**({positive: (alpha, 1.0)} if positive else {}), name: (beta, 0.0)}
        _check(pipe, network, weights, name)
        calls = _Calls(pipe, network, batch)
        stack.callback(network.register_forward_pre_hook(calls.before, with_kwargs=True).remove)
        if batch is None:
            network.cache_context = calls.cache_context
            stack.callback(vars(network).pop, "cache_context")
        for path, layer in list(_layers(network)):
            if own := {adapter: pair for adapter, pair in weights.items() if adapter in layer.lora_A}:
                layer.forward = _Layer(path, layer, own, calls).forward
                stack.callback(vars(layer).pop, "forward")
        return calls, stack.pop_all()


def _layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in network.named_modules() if isinstance(module, BaseTunerLayer))


def _adapters(network: nn.Module) -> list[str]:
    return list(vars(network).get("peft_config", {}))


def _active(network: nn.Module) -> list[str]:
    return next((list(layer.active_adapters) for _, layer in _layers(network)), [])


def _positive(network: nn.Module, negative: str, positive: str | None) -> str | None:
    """Return the adapter of the positive branch. Raises ConfigError if it is unknown, or if others are active besides it."""
    others = [name for name in _active(network) if name != negative]
    if positive is None and len(others) <= 1:
        return others[0] if others else None
    if positive is not None and positive not in {*_adapters(network)} - {negative}:
        raise ConfigError(f"`positive`: {positive!r} is no loaded adapter but the negative.{did_you_mean(positive, _adapters(network))}")
    if set(others) - {positive}:
        raise ConfigError(f"the adapters {others} are active; expected at most the positive one, call `set_adapters` with it first")
    return positive


def _check(pipe: Any, network: nn.Module, weights: Mapping[str, Any], negative: str) -> None:
    """Raise ConfigError for what the sum of two plain low-rank adapters would not describe."""
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module) and module is not network and negative in _adapters(module):
            raise ConfigError(f"the negative adapter {negative!r} also changes `{part}`, which both branches share; delete it there")
    for name, layer in _layers(network):
        if "forward" in vars(layer):
            raise ConfigError(f"{name}: its forward is replaced already, by negative guidance or by an offloading hook")
        if not isinstance(layer, Linear | _ConvNd):
            raise ConfigError(f"{name}: a {type(layer).__name__} adapter; expected LoRA of linear and convolution layers")
        _check_switches(name, layer)
        for adapter in weights.keys() & layer.lora_A.keys():
            if kind := layer.lora_variant.get(adapter):
                raise ConfigError(f"adapter {adapter!r} is no plain LoRA but {type(kind).__name__}, which is no sum of weights")
            if layer.lora_B[adapter].bias is not None or getattr(layer.lora_B[adapter], "groups", 1) != 1:
                raise ConfigError(f"adapter {adapter!r} has a bias or grouped convolutions at {name}; expected plain LoRA")
            if layer.lora_A[adapter].weight.is_meta:
                raise ConfigError(f"the weights of {name} are offloaded one by one; offload whole models")


def _check_switches(name: str, layer: LoraLayer) -> None:
    if layer.merged:
        raise ConfigError(f"the adapters {layer.merged_adapters} are fused into {name}; call `unfuse_lora` first")
    if layer.disable_adapters:
        raise ConfigError(f"the adapters are switched off at {name}; call `enable_lora` first")


class _Calls:
    """Watches the calls of one network: which branches the rows of the batch belong to, and whether there is guidance at all."""

    def __init__(self, pipe: Any, network: nn.Module, batch: slice | None) -> None:
        self.branch, self.rows = batch, 1  # `rows` divides the first axis of every layer's input
        self._pipe, self._batched, self._alone = pipe, batch is not None, False
        self._known = (_adapters(network), _active(network))
        self._stock_context: Any = None if self._batched else network.cache_context

    def before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a call that is not a step of guidance. Runs before every forward of the network."""
        if (_adapters(network), _active(network)) != self._known:
            raise ConfigError(f"the adapters were {self._known} (loaded, active) when negative guidance was attached; attach it again")
        if self.branch is None:
            raise ConfigError('the network was called outside `cache_context("cond")` and `("uncond")`: the branch is not known')
        if not self._batched:
            return
        x = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
        half, odd = divmod(len(x), 2)
        # Not the pipeline's word alone: PixArt has none, and `from_pipe` shares the network. With guidance the latents come twice.
        guided = not odd and getattr(self._pipe, "do_classifier_free_guidance", True) and torch.equal(x[:half], x[half:])
        if not guided or kwargs.get("skip_layers") is not None:
            raise ConfigError("negative guidance needs guidance; expected a guidance scale > 1, and no skip-layer guidance")
        self.rows = len(x)

    @contextmanager
    def cache_context(self, name: str, **fields: Any) -> Iterator[None]:
        """Stand in for the network's `cache_context`, which tells the branches apart."""
        if name == "cond":
            self.finish()
        try:
            self.branch = {"cond": _POSITIVE, "uncond": _NEGATIVE}.get(name)
            with self._stock_context(name, **fields):
                yield
        finally:
            self.branch = None
        self._alone = name == "cond"

    def finish(self) -> None:
        """Raise ConfigError if the last positive call was not followed by a negative one."""
        if self._alone:
            self._alone = False
            raise ConfigError("the pipeline ran without guidance; expected a negative prompt, and a (true CFG) scale > 1")


class _Layer:
    """Stands in for the forward of a LoRA layer: base(x) + B (w * A x), both adapters' A and B stacked, w by branch; without dropout."""

    def __init__(self, name: str, layer: Any, weights: dict[str, tuple[float, float]], calls: _Calls) -> None:
        self._name, self._layer, self._weights, self._calls = name, layer, weights, calls
        self._conv = isinstance(layer, _ConvNd)
        self._table, self._key = torch.empty(0), ()

    def forward(self, x: Tensor) -> Tensor:
        _check_switches(self._name, self._layer)
        if len(x) % self._calls.rows:
            raise ConfigError(f"{self._name} gets {len(x)} rows for a batch of {self._calls.rows}; the branches cannot be told apart")
        branch: Any = self._calls.branch
        base = self._layer.base_layer(x)
        # Stacked at every call: the weights may be moved, cast, trained or swapped in place.
        down, up = ([side[name] for name in self._weights] for side in (self._layer.lora_A, self._layer.lora_B))
        hidden = self._apply(down[0], x.to(down[0].weight.dtype), torch.cat([d.weight for d in down]))
        hidden = hidden.unflatten(0, (branch.stop - branch.start, -1)) * self._rank_weights(hidden)[branch]
        return (base + self._apply(up[0], hidden.flatten(0, 1), torch.cat([u.weight for u in up], dim=1))).to(base.dtype)

    def _apply(self, module: Any, x: Tensor, weight: Tensor) -> Tensor:
        return module._conv_forward(x, weight, None) if self._conv else nn.functional.linear(x, weight)

    def _rank_weights(self, hidden: Tensor) -> Tensor:
        """Return weight times scaling of every rank, shaped to multiply (branch, row, ...) of `hidden`."""
        scalings = [self._layer.scaling[name] for name in self._weights]
        if (key := (scalings, hidden.device, hidden.dtype, hidden.ndim)) != self._key:
            pairs = torch.tensor(list(self._weights.values()), dtype=torch.float64) * torch.tensor(scalings, dtype=torch.float64)[:, None]
            ranks = torch.tensor([len(self._layer.lora_A[name].weight) for name in self._weights])
            table = pairs.T.repeat_interleave(ranks, dim=1)[[0, 1, 0]]  # (3, R)
            shape = [3] + [1] * hidden.ndim
            shape[2 if self._conv else -1] = -1
            self._table, self._key = table.to(hidden).view(shape), key
        return self._table


def _load(pipe: Any, network: Any, component: str, path: Path, stack: ExitStack) -> str:
    """Load a file as `ADAPTER`, active nowhere, and return this name; `stack` deletes it. CheckpointError if it does not fit."""
    if ADAPTER in _adapters(network):
        raise ConfigError("negative guidance with a file is attached to this pipeline already; take that off first")
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"`negative`: {file} is neither a LoRA file nor one of the loaded adapters {_adapters(network)}")
    tensors, metadata = tensor_files.read(file)
    _check_file(pipe, network, component, file, tensors, metadata)
    trained_here = METADATA in metadata or Run.is_in(file.parent)
    if not trained_here and not isinstance(pipe, LoraBaseMixin):
        raise ConfigError(f"{type(pipe).__name__} reads no LoRA files; inject the adapter with peft and pass its name")
    settle = _restore_later(network, stack)
    try:
        if trained_here:
            load_lora(pipe, file, component, ADAPTER)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what is wanted
                pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=ADAPTER)  # pyright: ignore[reportCallIssue]  # of a pipeline that has it
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{file}: does not fit `{component}`, a {type(network).__name__} ({error})") from error
    finally:
        settle()
    if ADAPTER not in _adapters(network):
        raise CheckpointError(f"{file}: has nothing for `{component}`, a {type(network).__name__}")
    for name, layer in _layers(network):
        if any(ADAPTER in side and side[ADAPTER].weight.is_meta for side in (layer.lora_A, layer.lora_B)):
            raise CheckpointError(f"{file}: has only one half of the update of {name}")
    return ADAPTER


def _check_file(
    pipe: Any, network: nn.Module, component: str, file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Raise CheckpointError if `file` is no adapter of this network alone, of sound numbers; other naming is left to the loader."""
    base = metadata.get("base") or (Run.open(file.parent, expects=ANY).base if Run.is_in(file.parent) else None)
    if base and pipe.name_or_path and Path(base).name != Path(pipe.name_or_path).name:
        raise CheckpointError(f"{file}: made for {base}, not {pipe.name_or_path}; if they are the same, load it and pass its name")
    shapes = {key.removesuffix(".weight").removesuffix(".base_layer"): value.shape for key, value in network.state_dict().items()}
    for name, value in tensors.items():
        if value.is_floating_point():
            tensor_files.check_numbers(str(file), name, value)
        shape = list(value.shape)
        if name.startswith(("text_encoder", "lora_te")):
            raise CheckpointError(f"{file}: also changes the text encoder ({name}), which both branches share")
        path, side, _ = name.removeprefix(f"{component}.").rpartition(".lora_A." if ".lora_A." in name else ".lora_B.")
        axis = 1 if side == ".lora_A." else 0
        if side and (path not in shapes or shape[axis] != shapes[path][axis]):
            there = f"a weight of {list(shapes[path])}" if path in shapes else "no such layer"
            raise CheckpointError(f"{file}: made for another network: it has {name} of {shape}, `{component}` has {there}")


def _restore_later(network: Any, stack: ExitStack) -> Callable[[], None]:
    """Let `stack` delete `ADAPTER`; return what undoes the effect of loading it on other adapters and on gradients."""
    before = {layer: list(layer.active_adapters) for _, layer in _layers(network)}
    active = _active(network)
    gradients = [(parameter, parameter.requires_grad) for parameter in network.parameters()]

    def settle() -> None:
        for _, layer in _layers(network):
            layer.set_adapter(before.get(layer, active))
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)

    def delete() -> None:
        for name, layer in list(_layers(network)):
            layer.delete_adapter(ADAPTER)
            if layer not in before and not layer._get_available_adapters():
                network.set_submodule(name, layer.base_layer)
        vars(network).get("peft_config", {}).pop(ADAPTER, None)
        if not _adapters(network):
            for fact in ("peft_config", "_hf_peft_config_loaded"):
                vars(network).pop(fact, None)

    stack.callback(delete)
    return settle
