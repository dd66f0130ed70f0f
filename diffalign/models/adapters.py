"""Adapters on a network, through peft: add, switch off, save and load in the format of its library; and networks trained as a whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from diffalign.core import tensor_files
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.files import atomic_folder, files_for
from diffalign.models.adapter_files import CLIP, ENCODERS, MODEL, PEFT_PREFIX, PEFT_WEIGHTS, WEIGHTS, AdapterFile, encoders_in
from diffalign.models.lora_layers import Switch, without_dispatch
from diffalign.models.quantised import holds_quantised
from diffalign.models.weights import read_network


def add_lora(
    model: nn.Module, *, targets: Sequence[str], rank: int, alpha: float | None = None, dropout: float = 0.0, dora: bool = False
) -> None:
    """Add a float32 adapter that changes nothing yet (B is zero) to the layers whose names end in one of `targets`.

    Raises ConfigError if no layer has such a name.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]  # peft divides it by r: a float is fine
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=list(targets),
        use_dora=dora,
    )
    model.requires_grad_(False)
    network: Any = model
    try:
        # A few classes of diffusers (PixArt's) lack the method.
        network.add_adapter(config, "default") if isinstance(model, PeftAdapterMixin) else inject_adapter_in_model(config, network)
    except ValueError as error:
        raise ConfigError(f"`lora_layers` {list(targets)}: {error}") from error
    for parameter in trainable(model):
        parameter.data = parameter.data.float()
    without_dispatch(model)


def add_adapter(model: nn.Module, adapter: AdapterFile, dropout: float = 0.0) -> None:
    """Add the adapter of a file, float32, to be trained further. Raises CheckpointError where it is made for another network."""
    device = next(model.parameters()).device
    adapter.config.lora_dropout = dropout
    model.requires_grad_(False)
    adapter.put(model)
    for parameter in trainable(model):
        parameter.data = parameter.data.to(device, torch.float32)
    without_dispatch(model)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that get a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def disabled(model: nn.Module) -> AbstractContextManager[None]:
    """Return a block with the model's base weights alone; the adapter is on again afterwards, also on an error."""
    return Switch(model)()


def save_lora(pipe: Any, folder: Path, component: str) -> None:
    """Write `pytorch_lora_weights.safetensors`, which stock `load_lora_weights` reads, with the adapters' configs and true alphas.

    The text encoders of the pipeline that have one go with the denoiser `component`. Where the pipeline reads no LoRA (PixArt's), also
    peft's own two files, for `PeftModel.from_pretrained(pipe.transformer, folder)`.
    """
    model, more = getattr(pipe, component), dict[str, Any]()
    for part, encoder in pipe.components.items():
        if part.startswith(ENCODERS) and "peft_config" in vars(encoder or nn.Module()):
            state = get_peft_model_state_dict(encoder)
            # As CLIP's layers are called in files: all versions of transformers know these names, in its own networks or not.
            more[f"{part}_lora_layers"] = {f"{CLIP}{name.removeprefix(CLIP)}": value for name, value in state.items()}
            more[f"{part}_lora_adapter_metadata"] = _facts(encoder.peft_config["default"])
    _write(pipe, folder, component, get_peft_model_state_dict(model), model.peft_config["default"], more)


def _facts(config: LoraConfig) -> dict[str, Any]:
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


def _write(
    pipe: Any, folder: Path, component: str, state: dict[str, Tensor], config: LoraConfig, more: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter through diffusers' own saver, which also takes those of text encoders (`more`), under a temporary name first."""
    facts = _facts(config)
    with files_for(folder) as temporary:
        if isinstance(pipe, LoraBaseMixin):
            layers = {f"{component}_lora_layers": state, f"{component}_lora_adapter_metadata": facts, **(more or {})}
            kind: Any = type(pipe)
            kind.save_lora_weights(temporary, **layers)
        else:
            packed, prefixed = ({f"{component}.{k}": v for k, v in values.items()} for values in (state, facts))
            LoraBaseMixin.write_lora_layers(packed, str(temporary), True, WEIGHTS, None, True, prefixed)  # pyright: ignore[reportArgumentType]  # facts, too
            peft_files(temporary, state, config)


def peft_files(folder: Path, state: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write an adapter as peft's two files."""
    config.save_pretrained(str(folder))
    save_file({f"{PEFT_PREFIX}{k}": v.detach().cpu().contiguous() for k, v in state.items()}, folder / PEFT_WEIGHTS)


def save_peft(model: Any, folder: Path, base: str) -> None:
    """Write a language model's adapter as peft's two files, for `PeftModel.from_pretrained` and `AutoPeftModelForCausalLM`."""
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path, config.task_type = base, "CAUSAL_LM"
    with files_for(folder) as temporary:
        peft_files(temporary, get_peft_model_state_dict(model), config)


def load_lora(pipe: Any, folder: Path, component: str, name: str = "default") -> None:
    """Load a run's adapters, of the denoiser `component` and of text encoders, into a stock pipeline as `name`, also where its class has
    no method for that (PixArt's).

    Raises CheckpointError for a file that is not whole, made for another network or of unsound numbers, or that changes nothing.
    """
    _load(getattr(pipe, component), folder, component, name)
    for part in encoders_in(folder):
        encoder, adapter = pipe.components.get(part), AdapterFile.read(folder, part)
        if encoder is None:
            raise CheckpointError(f"{adapter.file}: has layers for the part `{part}`, which this model is without")
        adapter.put(encoder, name)
        encoder.requires_grad_(False)


def scale_lora(model: nn.Module, scale: float, name: str = "default") -> None:
    """Let an adapter count `scale` times what it was trained to: at 0 the network is the base, at 1 the run."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.set_scale(name, scale)


def merge(network: Any) -> None:
    """Add the adapters of a network to its weights, and take them off. Raises CheckpointError if a weight overflows or is quantised."""
    if holds_quantised(network):
        raise CheckpointError(f"a {type(network).__name__} of quantised weights has no room for an adapter in them; leave it beside them")
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in layers:
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise CheckpointError(f"`{name}`: merging gives weights that are not finite in {network.dtype}; choose bf16 or fp32") from error
        network.set_submodule(name, layer.get_base_layer())
    for fact in ("peft_config", "_hf_peft_config_loaded"):
        vars(network).pop(fact, None)


def load_peft(model: Any, folder: Path) -> None:
    """Add the adapter that `save_peft` wrote to a language model. Raises as `load_lora`."""
    _load(model, folder, MODEL, "default")


def _load(model: Any, folder: Path, component: str, name: str) -> None:
    adapter = AdapterFile.read(folder, component)
    adapter.put(model, name)
    adapter.refuse_idle()
    model.requires_grad_(False)


def save_full(model: Any, folder: Path) -> None:
    """Write all weights of the denoiser to `folder` (diffusers layout, safetensors); an older folder is replaced at the end."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)


def load_results(networks: Mapping[str, nn.Module], folder: Path, *, full: bool, untrained: bool = False) -> None:
    """Put a finished run's weights into the denoiser, the first of `networks` by their name in the pipeline, and into text encoders.

    Raises CheckpointError as `load_result`, and where the run has trained another set of text encoders.
    """
    component, *encoders = networks
    load_result(networks[component], folder, full=full, component=component, untrained=untrained)
    if not full and sorted(there := encoders_in(folder)) != sorted(encoders):
        raise CheckpointError(
            f"{folder}: has adapters of {there or 'no text encoder'}; expected {encoders or 'none'} beside the {component}"
        )
    for part in encoders:
        AdapterFile.read(folder, part).overwrite(networks[part])


def load_result(model: Any, folder: Path, *, full: bool, component: str, untrained: bool = False) -> None:
    """Put a finished run's weights from `folder` into a network that was built like the run's.

    Raises CheckpointError if they differ, are damaged or unsound, or, unless `untrained` is welcome, change nothing.
    """
    if full:
        config = model.config if isinstance(model.config, Mapping) else None  # of diffusers
        tuned = read_network(type(model), folder / component, config)
        try:
            model.load_state_dict(tuned.state_dict())
        except RuntimeError as error:
            raise CheckpointError(f"{folder / component}: made for another model ({error})") from error
        return
    adapter = AdapterFile.read(folder, component)
    adapter.overwrite(model)
    if not untrained:
        adapter.refuse_idle()


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name, and what a user encoder has measured: what a checkpoint holds."""
    return {name: value.detach().cpu().contiguous() for name, value in kept(model).items()}


def kept(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters and the buffers of the user encoder, which is fitted before the training, by name."""
    measured = {name: buffer for name, buffer in model.named_buffers() if name.startswith("user_encoder.")}
    return {name: p for name, p in model.named_parameters() if p.requires_grad} | measured


def load_trained_state(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copy `tensors` of `file` to where `trained_state` takes them from. Raises CheckpointError if names, shapes or numbers are odd."""
    parameters = kept(model)
    tensor_files.check(file, tensors, parameters, "what is trained here (see rank, lora_layers and train_method)")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def save_difference(pipe: Any, base: nn.Module, tuned: nn.Module, folder: Path, *, component: str, rank: int = 64) -> float:
    """Write the change of all linear and convolution weights from `base` to `tuned` as an adapter of at most `rank`.

    By truncated singular values, the best approximation of that rank in the squared sense; changes of biases, norms and grouped
    convolutions are left out.
    Return the share of the squared change of those weights that the adapter keeps.
    """
    after: dict[str, Any] = dict(tuned.named_modules())
    state, ranks, kept, total = {}, {}, 0.0, 0.0
    for name, layer in base.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            change = (after[name].weight.detach().to(layer.weight) - layer.weight.detach()).float()
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # of which peft merges no adapter
                total += float(change.square().sum())
                continue
            u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
            ranks[name] = size = min(rank, len(s))
            tail = (1, 1) if change.dim() == 4 else ()
            state[f"{name}.lora_A.weight"] = (s[:size, None] * v[:size]).reshape(size, *change.shape[1:]).contiguous()
            state[f"{name}.lora_B.weight"] = u[:, :size].reshape(len(u), size, *tail).contiguous()
            kept, total = kept + float(s[:size].square().sum()), total + float(s.square().sum())
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks)
    _write(pipe, folder, component, state, config)
    return kept / total if total else 1.0
