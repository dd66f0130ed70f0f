"""Denoisers in one file whose weights stay in few bits: GGUF, and fp8 with or without ComfyUI's scales.

Facts of the layouts: ComfyUI keeps the scale of `X.weight` in `X.scale_weight`, newer files in `X.weight_scale`; GGUF files of image models
keep the shape of a tensor that was folded to fit their blocks in `comfy.gguf.orig_shape.X`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from diffalign.core.errors import CheckpointError
from diffalign.core.weight_files import DTYPES, SUFFIX, dtypes_of
from diffalign.models.backbones.single_file import DENOISER, looks_like
from diffalign.models.quantised import FLOATS, Packed, QuantisedLinear
from diffalign.models.weights import UNREADABLE, check_finite

GGUF = ".gguf"
SCALES = (".scale_weight", ".weight_scale")  # of the weight beside them
UNUSED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")  # of products in fp8, which are not taken here
FOLDED = "comfy.gguf.orig_shape."


@dataclass(slots=True)
class Contents:
    """The tensors of a file: plain ones, and those in few bits as bytes with their kind and scale, by name."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)


def is_quantised(path: Path) -> bool:
    """Return whether a denoiser's file is GGUF, or safetensors with weights of fp8. Raises CheckpointError for a damaged one."""
    if path.suffix.lower() == GGUF:
        return True
    return path.suffix == SUFFIX and path.is_file() and any(dtype in FLOATS for _, dtype in dtypes_of(path))


def quantised_denoiser(path: Path, config: Mapping[str, Any], kind: Any, dtype: torch.dtype, *, numbers: bool = True) -> Any:
    """Return the denoiser of class `kind` and the base's `config` that a file holds, its linear layers in the file's bits, else in `dtype`.

    Without `numbers`, it is on the meta device. Raises CheckpointError that names the file for types of quantisation that are not read,
    for another kind of denoiser, and for weights that are missing.
    """
    from accelerate import init_empty_weights

    with torch.device("meta") if not numbers else init_empty_weights(include_buffers=False):
        network = kind.from_config(config)
    contents = _of_gguf(path, numbers) if path.suffix.lower() == GGUF else _of_safetensors(path, numbers)
    _put(network, _renamed(path, contents, network), dtype, path)
    if numbers:
        check_finite(str(path), network)
    return network.requires_grad_(False).eval()


def _of_safetensors(path: Path, numbers: bool) -> Contents:
    """Return the tensors of a safetensors file; those of fp8 as bytes."""
    contents = Contents()
    for name, dtype in dtypes_of(path):
        if dtype not in (*DTYPES, *FLOATS) and not name.endswith(UNUSED):
            raise CheckpointError(f"{path}: `{name}` is of {dtype}; read are {', '.join((*DTYPES, *FLOATS))}, and GGUF")
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  # a safe_open is no mapping
            if name.endswith(UNUSED):
                continue
            part = opened.get_slice(name)
            if name.endswith(SCALES):
                contents.scales[name.rpartition(".")[0] + ".weight"] = opened.get_tensor(name).float()
                continue
            shape, dtype = part.get_shape(), part.get_dtype()
            tensor = opened.get_tensor(name) if numbers else torch.empty(shape, dtype=FLOATS.get(dtype, torch.float32), device="meta")
            if dtype in FLOATS:
                contents.kinds[name] = dtype
            contents.tensors[name] = tensor.view(torch.uint8) if dtype in FLOATS else tensor
    return contents


def _of_gguf(path: Path, numbers: bool) -> Contents:
    """Return the tensors of a GGUF file; those in blocks as bytes, but for folded ones, which cannot be a layer's as they lie."""
    try:
        import gguf
        from diffusers.quantizers.gguf.utils import dequantize_functions
    except ImportError as error:
        raise CheckpointError(f"{path}: GGUF is read by the package gguf: pip install gguf") from error
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read as GGUF ({error})") from error
    contents = Contents()
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for entry in reader.tensors:
        name, kind = entry.name, entry.tensor_type
        if kind.name not in plain and kind not in dequantize_functions:
            readable = ", ".join(sorted({*plain, *(other.name for other in dequantize_functions)}))
            raise CheckpointError(f"{path}: `{name}` is quantised as {kind.name}, which diffusers does not read; read are {readable}")
        data = torch.from_numpy(np.array(entry.data)) if numbers else torch.empty(entry.data.shape, dtype=torch.uint8, device="meta")
        if kind.name in plain:
            contents.tensors[name] = data.view(plain[kind.name]) if numbers else torch.empty(*map(int, entry.shape[::-1]), device="meta")
        else:
            contents.tensors[name], contents.kinds[name] = data, kind.name
        if (shape := reader.fields.get(FOLDED + name)) is not None:
            sides = [int(shape.parts[place][0]) for place in shape.data]
            packed = Packed(contents.tensors[name], contents.kinds.pop(name)) if name in contents.kinds else None
            contents.tensors[name] = (packed.numbers() if packed else contents.tensors[name]).reshape(sides)
    return contents


def _renamed(path: Path, contents: Contents, network: nn.Module) -> dict[str, Tensor | Packed]:
    """Return the tensors by diffusers' names.

    Its converter, which splits and joins rows, is sent the bytes, then for each row its kind, then its scale.
    """
    prefixed = any(name.startswith(DENOISER) for name in contents.tensors)  # what else a whole model has is not wanted
    tensors = {name: value for name, value in contents.tensors.items() if not prefixed or name.startswith(DENOISER)}
    names = sorted(set(contents.kinds.values()))
    marks = {name: names.index(contents.kinds[name]) + 1 if name in contents.kinds else 0 for name in tensors}
    kinds = {name: _by_row(value, torch.tensor(float(marks[name]))) for name, value in tensors.items()}
    scales = {name: _by_row(value, _scale(path, name, contents, value)) for name, value in tensors.items()}
    convert = _converter(path, network, tensors)
    moved, rows, factors = convert(tensors), convert(kinds), convert(scales)
    state: dict[str, Tensor | Packed] = {}
    for name, value in moved.items():
        kind = sorted(set(rows[name].flatten().tolist()))
        if len(kind) > 1:
            raise CheckpointError(f"{path}: `{name}` is made of weights that are quantised in different ways")
        scaled = contents.scales and names and kind[0]
        state[name] = Packed(value, names[int(kind[0]) - 1], factors[name] if scaled else None) if kind[0] else value
    return state


def _by_row(tensor: Tensor, values: Tensor) -> Tensor:
    """Return (rows, 1, ...) of as many axes as `tensor`: one value, or one a row."""
    shape = (*tensor.shape[:1], *(1 for _ in tensor.shape[1:]))
    return values.reshape(-1).expand(math.prod(shape)).reshape(shape).clone()


def _scale(path: Path, name: str, contents: Contents, tensor: Tensor) -> Tensor:
    """Return the scale of a weight, or those of its rows. Raises CheckpointError for other scales."""
    scale = contents.scales.get(name, torch.ones(1))
    if scale.numel() not in (1, len(tensor) if tensor.ndim else 1):
        raise CheckpointError(f"{path}: `{name}` has scales of shape {tuple(scale.shape)}; read are one for a weight, or one for each row")
    return scale


def _converter(path: Path, network: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what turns tensors by the file's names into tensors by diffusers' names."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    kind, expected = type(network).__name__, set(network.state_dict())
    if expected <= tensors.keys():
        return lambda values: {name: values[name] for name in expected}
    if kind not in SINGLE_FILE_LOADABLE_CLASSES:
        raise CheckpointError(f"{path}: diffusers reads no single file of a {kind} but by diffusers' own names")
    function, config = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"], dict(network.config)

    prefix = DENOISER if "input_blocks.0.0.weight" in tensors else ""  # which the converter of UNets looks for
    wrong = f"{path}: looks like {looks_like(tensors)}, and does not load as the {kind} of this base"

    def convert(values: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            converted = function(checkpoint={prefix + name: value for name, value in values.items()}, config=config)
        except (*UNREADABLE, IndexError) as error:
            raise CheckpointError(f"{wrong} ({error})") from error
        if odd := sorted(expected ^ set(converted)):
            raise CheckpointError(f"{wrong}: it {'lacks' if odd[0] in expected else 'also has'} `{odd[0]}`")
        return converted

    return convert


def _put(network: nn.Module, state: Mapping[str, Tensor | Packed], dtype: torch.dtype, path: Path) -> None:
    """Put all weights into their places; those in few bits of linear layers stay so. Raises CheckpointError for other shapes."""
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    for name, value in state.items():
        if value.shape != wanted[name]:
            raise CheckpointError(f"{path}: `{name}` has the shape {tuple(value.shape)}; the base's has {tuple(wanted[name])}")
    layers: dict[str, Any] = dict(network.named_modules())
    packed: dict[str, Packed] = {}
    for name, value in state.items():
        place, _, leaf = name.rpartition(".")
        layer = layers[place]
        if isinstance(value, Packed) and isinstance(layer, nn.Linear) and leaf == "weight":
            packed[place] = value
            continue
        numbers = (value.numbers() if isinstance(value, Packed) else value).to(dtype)
        setattr(layer, leaf, nn.Parameter(numbers, requires_grad=False) if leaf in layer._parameters else numbers)
    for place, value in packed.items():
        network.set_submodule(place, QuantisedLinear(value, layers[place].bias))
