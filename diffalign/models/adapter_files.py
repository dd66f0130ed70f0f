"""The one reader of adapters that were trained here: a file is whole, made for this network, and of sound numbers, or it is refused.

Which layers have an adapter, its rank and its scale stand in the file's metadata, where diffusers writes them, or in peft's own file
beside it, and in run.json; where two of these say it, they agree.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffalign.core import tensor_files
from diffalign.core.documents import parse_json, read_mapping
from diffalign.core.errors import CheckpointError
from diffalign.core.keys import ANY
from diffalign.core.runs import RUN, Run

WEIGHTS = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # of the names in peft's own file
MODEL = "model"  # the component of a language model, whose adapter is in peft's own file
IDLE = """this adapter changes nothing: in every layer one of its two matrices is zero, as before the first step of a training; train the
run for longer, or with a learning rate above zero"""
ENCODERS = "text_encoder"  # how the names of tensors begin that are for a text encoder; one file has the adapters of several networks
CLIP = "text_model."  # how CLIP's layers begin in files, and in some of its classes
ENCODER_FACTS = "text_encoder_adapters"  # in run.json, by their name in the pipeline
METADATA = "lora_adapter_metadata"  # the metadata key of diffusers for the adapter's config


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFile:
    """An adapter as it lies on the disk."""

    file: Path
    prefix: str  # of every tensor's name: the component's, or peft's own
    tensors: Mapping[str, Tensor]  # by their names in the file
    metadata: Mapping[str, str]
    config: LoraConfig

    @classmethod
    def read(cls, path: Path, component: str) -> AdapterFile:
        """Return the adapter in a file, or in the folder of a run or an export: of the part `component` of a pipeline, or of a
        language model.

        Raises CheckpointError where it is missing or damaged, or where its layers, rank and alpha stand nowhere.
        """
        peft = component == MODEL
        file, prefix = path, PEFT_PREFIX if peft else f"{component}."
        if path.is_dir():
            file = path / (PEFT_WEIGHTS if peft else WEIGHTS)
        if not file.is_file():
            raise CheckpointError(f"{path}: the run's weights are missing; expected {file.name}")
        tensors, metadata = tensor_files.read(file)
        others = (ENCODERS, "unet.", "transformer.") if component.startswith(ENCODERS) else ENCODERS
        tensors = {name: value for name, value in tensors.items() if name.startswith(prefix) or not name.startswith(others)}
        if not tensors:
            raise CheckpointError(f"{file}: holds no tensors of the {component}; expected an adapter")
        config = _config(file, prefix, metadata)
        sizes = {size for value in tensors.values() if value.numel() for size in value.shape}
        pattern = config.rank_pattern or {}
        ranks = {*pattern.values(), *([config.r] if set(config.target_modules or ()) - pattern.keys() else [])}
        if odd := ranks - sizes:  # else peft might allocate whatever the file claims
            raise CheckpointError(f"{file}: says rank {max(odd)}, and none of its tensors has that size")
        return cls(file, prefix, tensors, metadata, config)

    def refuse_idle(self) -> None:
        """Raise CheckpointError if the adapter changes no weight, as before the first step: up times down is zero in every layer."""
        ups = [name for name in self.tensors if name.endswith(".lora_B.weight")]
        if not any(_adds(self.tensors[name.replace(".lora_B.", ".lora_A.")], self.tensors[name]) for name in ups):
            raise CheckpointError(f"{self.file}: {IDLE}")

    def put(self, network: nn.Module, name: str = "default") -> None:
        """Add the adapter to a network as `name`, active. Raises CheckpointError where its tensors are not the network's own."""
        self.inject(network, name)
        set_peft_model_state_dict(network, self._named(network).plain(), adapter_name=name, low_cpu_mem_usage=True)

    def inject(self, network: Any, name: str = "default") -> None:
        """Add empty layers of the adapter to a network and check that the file has exactly what belongs in them."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what is wanted
                inject_adapter_in_model(self.config, network, name, low_cpu_mem_usage=True)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.file}: made for another network than a {type(network).__name__} ({error})") from error
        if isinstance(network, PeftAdapterMixin | PreTrainedModel):
            network._hf_peft_config_loaded = True  # by which the methods of diffusers know of it
        self.check(network, name)

    def check(self, network: Any, name: str = "default") -> None:
        """Raise CheckpointError unless the tensors are those of the adapter `name` of a network, which it has already."""
        expected = {f"{self.prefix}{key}": value for key, value in get_peft_model_state_dict(network, adapter_name=name).items()}
        config = network.peft_config[name]
        owner = f"an adapter of rank {config.r} on {_listed(config)} of a {type(network).__name__}"
        tensor_files.check(self.file, self._named(network).tensors, expected, owner)

    def overwrite(self, network: Any) -> None:
        """Put the tensors into the adapter that a network has already. Raises CheckpointError where it is another one."""
        self.check(network)
        here = network.peft_config["default"]
        if not math.isclose(self.config.lora_alpha, here.lora_alpha):
            raise CheckpointError(f"{self.file}: an adapter with alpha {self.config.lora_alpha:g}; expected {here.lora_alpha:g}")
        set_peft_model_state_dict(network, self._named(network).plain())

    def _named(self, network: nn.Module) -> AdapterFile:
        """Return the adapter with the layers of a text encoder called as this class of CLIP calls them."""
        if not self.prefix.startswith(ENCODERS):
            return self
        start = CLIP if any(name == CLIP[:-1] for name, _ in network.named_children()) else ""
        bare = {name.removeprefix(self.prefix).removeprefix(CLIP): value for name, value in self.tensors.items()}
        return replace(self, tensors={f"{self.prefix}{start}{name}": value for name, value in bare.items()})

    def up_to(self, count: int) -> AdapterFile:
        """Return the adapter of a text encoder without what it has for others than the first `count` layers."""
        layers = {name: name.removeprefix(self.prefix).removeprefix(CLIP).rpartition(".lora_")[0] for name in self.tensors}
        numbers = {layer: re.search(r"layers\.(\d+)\.", layer) for layer in layers.values()}
        kept = {layer for layer, number in numbers.items() if number is None or int(number[1]) < count}
        if len(kept) == len(numbers):
            return self
        config, dropped = copy.copy(self.config), numbers.keys() - kept
        config.target_modules = sorted(kept)
        for pattern in ("rank_pattern", "alpha_pattern"):
            own = getattr(config, pattern) or {}
            setattr(config, pattern, {name: n for name, n in own.items() if name.removeprefix("^").removeprefix(CLIP) not in dropped})
        return replace(self, tensors={name: value for name, value in self.tensors.items() if layers[name] in kept}, config=config)

    def plain(self) -> dict[str, Tensor]:
        """Return copies of the tensors by peft's names, without the prefix."""
        # Clones, since a file's tensors begin anywhere in memory, and the kernels round otherwise there.
        return {name.removeprefix(self.prefix): value.clone() for name, value in self.tensors.items()}


def encoders_in(path: Path) -> list[str]:
    """Return the text encoders that a LoRA file, or that of a folder, has tensors for; only its header is read."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        return []
    return sorted({name.split(".")[0] for name in tensor_files.names(file) if name.startswith(ENCODERS)})


def _adds(down: Tensor, up: Tensor) -> bool:
    """Return whether up @ down is not zero, by the Gram matrices of both, which are as small as the rank."""
    down, up = down.flatten(1).double(), up.flatten(1).double()
    return bool((down @ down.T).mul(up.T @ up).sum() > 0)


def adapter_facts(network: nn.Module) -> dict[str, Any]:
    """Return what run.json says of a network's trained adapter, {"adapter": ...}, and of those of text encoders; nothing without one."""
    configs = {name: vars(part)["peft_config"]["default"] for name, part in network.named_modules() if "peft_config" in vars(part)}
    facts = {
        name.rpartition(".")[2]: {"rank": config.r, "alpha": float(config.lora_alpha), "layers": sorted(config.target_modules)}
        for name, config in configs.items()
    }
    encoders = {name: one for name, one in facts.items() if name.startswith(ENCODERS)}
    denoiser = [one for name, one in facts.items() if name not in encoders]  # one, or none
    return {**dict(zip(["adapter"], denoiser, strict=False)), **({ENCODER_FACTS: encoders} if encoders else {})}


def _listed(config: LoraConfig) -> str:
    """Return the layers of a config for a message, at most eight."""
    layers = sorted(config.target_modules or ())
    return ", ".join(layers[:8]) + (", ..." if len(layers) > 8 else "")


def _config(file: Path, prefix: str, metadata: Mapping[str, str]) -> LoraConfig:
    """Return the config that an adapter was trained with; of what files say, only what decides names, shapes and scale is believed."""
    facts = Run.open(file.parent, expects=ANY).facts if Run.is_in(file.parent) else {}
    run = facts.get(ENCODER_FACTS, {}).get(prefix[:-1]) if prefix.startswith(ENCODERS) else facts.get("adapter")
    written, where = _written(file, prefix, metadata)
    if written is None and run is None:
        raise CheckpointError(f"{file}: layers, rank and alpha of the adapter stand nowhere; expected them in its metadata ({METADATA})")
    try:
        if written is None:
            assert run is not None
            return _checked({"r": run["rank"], "lora_alpha": run["alpha"], "target_modules": run["layers"]})
        config = _checked(written)
        if run is not None:
            there = {"rank": config.r, "alpha": config.lora_alpha, "layers": sorted(config.target_modules or ())}
            if odd := [key for key in there if there[key] != run[key]]:
                raise CheckpointError(f"{where}: {odd[0]} of the adapter is {there[odd[0]]}, and {run[odd[0]]} in {RUN} of the run")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: no config of a LoRA adapter ({error!r})") from error
    return config


def _written(file: Path, prefix: str, metadata: Mapping[str, str]) -> tuple[Mapping[str, Any] | None, Path]:
    """Return what stands in an adapter's metadata, or in peft's file beside it, None where neither is there; and the file it is in."""
    beside, facts = file.with_name(PEFT_CONFIG), None
    where = file if METADATA in metadata or not beside.is_file() else beside
    if where == beside:
        facts = read_mapping(beside, CheckpointError)
    elif METADATA in metadata:
        facts = parse_json(metadata[METADATA], f"{file}, {METADATA}", CheckpointError)
        if not isinstance(facts, dict):
            raise CheckpointError(f"{file}: the adapter's config is a {type(facts).__name__}; expected names and values")
    return facts and {key.removeprefix(prefix): value for key, value in facts.items()}, where


def _checked(facts: Mapping[str, Any]) -> LoraConfig:
    """Return a config. Raises KeyError, TypeError or ValueError for values that no adapter is trained with."""
    rank, alpha, layers = facts["r"], facts["lora_alpha"], facts["target_modules"]
    ranks, alphas = facts.get("rank_pattern") or {}, facts.get("alpha_pattern") or {}
    if not all(type(value) is int and value > 0 for value in (rank, *ranks.values())):
        raise ValueError(f"rank {rank!r}")
    if not all(isinstance(value, int | float) and 0 < value <= tensor_files.LARGEST for value in (alpha, *alphas.values())):
        raise ValueError(f"alpha {alpha!r}")
    # Patterns are regular expressions to peft; ours are plain names, or whole ones behind a ^.
    names = [*layers, *(name.removeprefix("^") for name in (*ranks, *alphas))]
    if not isinstance(layers, list) or not layers or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names):
        raise ValueError(f"layers {str(layers)[:100]}")
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # peft divides it by r: a float is fine
        target_modules=layers,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_dora=bool(facts.get("use_dora")),
        use_rslora=bool(facts.get("use_rslora")),
        fan_in_fan_out=bool(facts.get("fan_in_fan_out")),
    )
