"""LoRA files in the layouts of other programs (kohya's scripts, ComfyUI, diffusers, peft), read as adapters of a model's networks.

A layer is looked up by every name that these programs have for it: that of diffusers, and that of the published layout, with dots or with
underscores, behind the prefixes of each program or behind none (DiffSynth, Qwen-Image-Lightning). Strength is up @ down times alpha / rank,
in every program; a module without an alpha counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from torch import Tensor, nn

from diffalign.core import tensor_files
from diffalign.core.errors import CheckpointError
from diffalign.models.adapter_files import METADATA, MODEL, PEFT_CONFIG, PEFT_PREFIX, PEFT_WEIGHTS, WEIGHTS, AdapterFile
from diffalign.models.backbones.places import Place

Tensors = Mapping[str, Tensor]
Places = Callable[[str], Place | None]
COMFYUI = "diffusion_model."
# How kohya's scripts, and LyCORIS, begin the names of a part's modules, whose dots are underscores there.
KOHYA = {
    "unet": ("lora_unet_", "lycoris_"),
    "transformer": ("lora_unet_", "lora_transformer_", "lycoris_"),
    "text_encoder": ("lora_te1_", "lora_te_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
# How the two halves of an update are called, by layout: down and up.
HALVES = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
# What diffusers called layers before it used peft.
EARLIER = {".to_q": ".q_proj", ".to_k": ".k_proj", ".to_v": ".v_proj", ".to_out": ".out_proj"}
# What other adapters than LoRA are told by, in the names of their tensors.
OTHERS = {
    ".lora_mid.": "LoCon with a core tensor (lora_mid)",
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".oft_": "OFT",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".diff": "whole differences of weights",
    ".lora_B.bias": "LoRA with biases",
}
FAMILY_KEYS = ("ss_base_model_version", "modelspec.architecture")  # of metadata: what model a file is for


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What a file adds to one module: alpha / rank * up @ down."""

    down: Tensor  # (rank, in, ...)
    up: Tensor  # (out, rank, ...)
    alpha: float

    def of(self, place: Place | None) -> Update:
        """Return the update of the layer that lies at `place` in the module; the module itself where it is None."""
        if place is None or (place.shares == (1,) and not place.swapped):
            return self
        unit = len(self.up) // sum(place.shares)
        first = unit * sum(place.shares[: place.part])
        up = self.up[first : first + unit * place.shares[place.part]]
        up = up.roll(len(up) // 2, 0) if place.swapped else up
        # Ranks that are of the module's other parts alone, as where its file was made of one adapter for each part.
        used = _columns(up) | ~_columns(self.up)
        if not used.any():
            return Update(self.down, up, self.alpha)
        return Update(self.down[used], up[:, used], self.alpha * int(used.sum()) / len(self.down))


def _columns(up: Tensor) -> Tensor:
    """Return which columns (rank,) of an up half (out, rank, ...) are not zero."""
    return up.transpose(0, 1).flatten(1).any(dim=1)


def lora_file(path: Path) -> Path:
    """Return the LoRA file that a path means: itself, or the one in a folder. Raises CheckpointError where there is none, or several."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: expected a LoRA in a .safetensors file; pickled weights are not loaded, convert them first")
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such LoRA file; expected a .safetensors file, or a folder with one")
    for name in (WEIGHTS, PEFT_WEIGHTS):
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        listed = ", ".join(file.name for file in files[:5]) or "none"
        raise CheckpointError(f"{path}: expected one LoRA file in this folder, or {WEIGHTS}; found {listed}")
    return files[0]


def read_lora(path: Path, networks: Mapping[str, nn.Module], component: str, places: Places) -> dict[str, AdapterFile]:
    """Return the adapters of a LoRA file by the part of the pipeline that they are for: the denoiser `component`, text encoders.

    `networks` are these parts, with or without numbers; `places` says where a layer of the denoiser lies in the published layout. Raises
    CheckpointError for another kind of adapter, for names that mean nothing here, and where the denoiser has no layers in it.
    """
    file = lora_file(path)
    tensors, metadata = tensor_files.read(file)
    adapters = _with_config(file, tensors, metadata, component) or _by_names(file, tensors, metadata, networks, component, places)
    for part in adapters:
        if part not in networks:
            raise CheckpointError(f"{file}: has layers for the part `{part}`, which this model is without{_for(metadata)}")
    if component not in adapters:
        raise CheckpointError(f"{file}: has nothing for the {type(networks[component]).__name__}{_for(metadata)}")
    adapters[component].refuse_idle()
    return adapters


def _with_config(file: Path, tensors: Tensors, metadata: Mapping[str, str], component: str) -> dict[str, AdapterFile]:
    """Return the adapters of a file that comes with its config, as diffusers and peft write it; none of any other file."""
    if METADATA in metadata:
        return {part: AdapterFile.read(file, part) for part in sorted({name.split(".")[0] for name in tensors})}
    if (file.parent / PEFT_CONFIG).is_file() and all(name.startswith(PEFT_PREFIX) for name in tensors):
        return {component: AdapterFile.read(file, MODEL)}
    return {}


def _by_names(
    file: Path, tensors: Tensors, metadata: Mapping[str, str], networks: Mapping[str, nn.Module], component: str, places: Places
) -> dict[str, AdapterFile]:
    """Return the adapters of a file of which only its tensors say what they are for."""
    layout, updates = _layout(tensors, component), _updates(file, tensors)
    names = {name: key for part, network in networks.items() for name, key in _names(part, network, places if part == component else None)}
    layers: dict[str, dict[str, Update]] = {}
    for module, update in updates.items():
        parts = names.get(module) or names.get(_today(module))
        if parts is None:
            unknown = [name for name in updates if name not in names and _today(name) not in names]
            raise CheckpointError(
                f"{file}: looks like a LoRA of {layout}{_for(metadata)}, and {len(unknown)} of its {len(updates)} modules are none of a "
                f"{type(networks[component]).__name__}, such as {_listed(unknown)}"
            )
        for part, layer, place in parts:
            layers.setdefault(part, {})[layer] = update.of(place)
    return {part: _adapter(file, part, own, metadata, networks[part]) for part, own in layers.items()}


def _layout(names: Tensors, component: str) -> str:
    """Return whose layout the names of a file's tensors are in."""
    starts = {prefix: "kohya's scripts" for prefixes in KOHYA.values() for prefix in prefixes}
    starts |= {COMFYUI: "ComfyUI", PEFT_PREFIX: "peft", f"{component}.": "diffusers", "text_encoder": "diffusers"}
    return next((program for start, program in starts.items() if any(name.startswith(start) for name in names)), "no known program")


def _updates(file: Path, tensors: Tensors) -> dict[str, Update]:
    """Return the update of every module, float32. Raises CheckpointError for another kind of adapter, and for one half alone."""
    updates, used = {}, set[str]()
    for name, value in tensors.items():
        if (other := next((kind for mark, kind in OTHERS.items() if mark in name), None)) is not None:
            raise CheckpointError(f"{file}: an adapter of another kind, {other} (`{name}`); expected plain LoRA, a down and an up half")
        for down, up in HALVES:
            module = name.removesuffix(down)
            if module == name or module + up not in tensors:
                continue
            alpha = tensors.get(f"{module}.alpha")
            strength = float(len(value)) if alpha is None else float(alpha) if alpha.numel() == 1 else 0.0
            if not 0 < strength <= tensor_files.LARGEST:
                # Zero means the rank to kohya's scripts, and nothing to ComfyUI.
                raise CheckpointError(f"{file}: `{module}.alpha` is {strength:g}; expected a number above zero")
            for half in (name, module + up):
                tensor_files.check_numbers(str(file), half, tensors[half])
            updates[module] = Update(value.float(), tensors[module + up].float(), strength)
            used |= {name, module + up, f"{module}.alpha"}
            break
    if odd := sorted(tensors.keys() - used):
        raise CheckpointError(f"{file}: {_listed(odd)} belong to no update of LoRA; expected pairs of a down and an up half, with an alpha")
    return updates


def _names(part: str, network: nn.Module, places: Places | None) -> Iterator[tuple[str, list[tuple[str, str, Place | None]]]]:
    """Yield every name of a module in a LoRA file, with (part, layer, place) of the layers that it holds."""
    plain: dict[str, list[tuple[str, str, Place | None]]] = {}
    published: dict[str, list[tuple[str, str, Place | None]]] = {}
    for layer, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        plain[layer] = [(part, layer, None)]
        if part.startswith("text_encoder") and not layer.startswith("text_model."):  # as CLIP's layers were called before
            plain[f"text_model.{layer}"] = plain[layer]
        place = places(layer) if places is not None else None
        if place is not None:
            published.setdefault(place.module, []).append((part, layer, place))
    # A name of both kinds is diffusers' behind its prefix, peft's and none, and for what is not fused they are the same layer.
    for name, layers in (published | plain).items():
        yield f"{part}.{name}", layers
        if places is not None:
            yield f"{PEFT_PREFIX}{name}", layers
            yield name, layers
    for name, layers in (plain | published if places is not None else plain).items():
        yield from ((prefix + name.replace(".", "_"), layers) for prefix in KOHYA[part])
        if places is not None:
            yield f"{COMFYUI}{name}", layers


def _today(module: str) -> str:
    """Return a module by the name that diffusers has for it since it uses peft; some files of FLUX.2 have lost the beginning of one.

    >>> _today("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out")
    'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0'
    """
    name = module.replace(".processor.", ".").replace(f"{COMFYUI}sformer_blocks.", f"{COMFYUI}transformer_blocks.")
    if name.startswith("text_encoder"):
        return next((name.removesuffix(old) + new for old, new in EARLIER.items() if name.endswith(old)), name)
    return f"{name}.0" if name.endswith(".to_out") else name


def _adapter(file: Path, part: str, updates: Mapping[str, Update], metadata: Mapping[str, str], network: nn.Module) -> AdapterFile:
    """Return the adapter of one part, each layer with its own rank and alpha."""
    ranks = {layer: len(update.down) for layer, update in updates.items()}
    alphas = {layer: update.alpha for layer, update in updates.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # peft divides it by r: a float is fine
        target_modules=_targets(updates, network),
        rank_pattern={f"^{layer}": own for layer, own in ranks.items() if own != rank},  # to peft they are regular expressions
        alpha_pattern={f"^{layer}": own for layer, own in alphas.items() if own != alpha},
    )
    tensors = {f"{part}.{layer}.lora_A.weight": update.down for layer, update in updates.items()}
    tensors |= {f"{part}.{layer}.lora_B.weight": update.up for layer, update in updates.items()}
    return AdapterFile(file, f"{part}.", {name: value.contiguous() for name, value in tensors.items()}, metadata, config)


def _targets(layers: Mapping[str, Update], network: nn.Module) -> list[str]:
    """Return the ends of layers' names (`to_q`, `to_out.0`) if they are those of no other module of the network, else all names."""
    ends = {re.sub(r"^.*?([^.]+(?:\.\d+)?)$", r"\1", layer) for layer in layers}
    meant = {name for name, _ in network.named_modules() if any(name == end or name.endswith(f".{end}") for end in ends)}
    return sorted(ends if meant == layers.keys() else layers)


def _for(metadata: Mapping[str, str]) -> str:
    """Return what a file says it is for, to go into a message."""
    words = [metadata[key] for key in FAMILY_KEYS if metadata.get(key)]
    return f" (its metadata says: for {' and '.join(words)})" if words else ""


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)[:3])
