"""The families of models by name, and loading: the pipeline's own class, from a folder or the hub, decides the family."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, PipelineQuantizationConfig

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.models.adapter_files import AdapterFile
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.base_lora import BaseLora, fuse
from diffalign.models.backbones.chroma import Chroma
from diffalign.models.backbones.cogview4 import CogView4
from diffalign.models.backbones.distilled import warning
from diffalign.models.backbones.ernie_image import ErnieImage
from diffalign.models.backbones.flux import Flux, FluxKontext
from diffalign.models.backbones.flux2 import Flux2
from diffalign.models.backbones.folders import Layout, check_folder, layout_of, layout_of_index, resolve
from diffalign.models.backbones.hidream import HiDream
from diffalign.models.backbones.hub import cache_only
from diffalign.models.backbones.kolors import Kolors
from diffalign.models.backbones.krea2 import Krea2
from diffalign.models.backbones.lora_layouts import read_lora
from diffalign.models.backbones.lumina2 import Lumina2
from diffalign.models.backbones.mistaken import INDEX
from diffalign.models.backbones.ovis_image import OvisImage
from diffalign.models.backbones.pixart import PixArt
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.backbones.quantised_file import is_quantised, quantised_denoiser
from diffalign.models.backbones.qwen_image import QwenImage
from diffalign.models.backbones.qwen_image_edit import QwenImageEdit
from diffalign.models.backbones.sana import Sana
from diffalign.models.backbones.sd import StableDiffusion
from diffalign.models.backbones.sd3 import StableDiffusion3
from diffalign.models.backbones.sdxl import StableDiffusionXL
from diffalign.models.backbones.single_file import denoiser_folder
from diffalign.models.backbones.z_image import ZImage
from diffalign.models.control import PLAIN
from diffalign.models.weights import UNREADABLE, check_finite, read_network, whole

logger = logging.getLogger(__name__)
BACKBONES: dict[str, type[Pretrained]] = {
    "sd": StableDiffusion,
    "sdxl": StableDiffusionXL,
    "kolors": Kolors,
    "pixart": PixArt,
    "sd3": StableDiffusion3,
    "flux": Flux,
    "flux_kontext": FluxKontext,
    "z_image": ZImage,
    "qwen_image": QwenImage,
    "qwen_image_edit": QwenImageEdit,
    "chroma": Chroma,
    "lumina2": Lumina2,
    "cogview4": CogView4,
    "flux2": Flux2,
    "sana": Sana,
    "krea2": Krea2,
    "ernie_image": ErnieImage,
    "hidream": HiDream,
    "ovis_image": OvisImage,
}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")  # parts that LoRA files may have layers for, beside the denoiser


def family_of(pipe: Any) -> str:
    """Return the key of BACKBONES for a stock pipeline. Raises CheckpointError for one that is not supported."""
    return _layout(pipe).family


def component_of(pipe: Any) -> str:
    """Return what a stock pipeline calls its denoiser. Raises CheckpointError for one that is not supported."""
    return _layout(pipe).component


def _layout(pipe: Any) -> Layout:
    """Return the layout of a stock pipeline, of one with a ControlNet that of the pipeline without."""
    name = type(pipe).__name__
    return layout_of(PLAIN.get(name, name), str(pipe.name_or_path or "this pipeline"))


def load_pipeline(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    vae: str | None = None,
    device_map: str | None = None,
    quantization: Any = None,
    denoiser: Path | None = None,
    trained: Path | None = None,
    base_loras: Sequence[BaseLora] = (),
) -> Any:
    """Return the stock pipeline of a model folder or hub id: safetensors only, no safety checker, no progress bars.

    `dtype` is for all parts, or by part with a "default"; `vae` is a folder or hub id whose autoencoder stands in (one that is sound
    in half precision); `denoiser` is a file or folder with a network that stands in for the model's own, and `trained` the folder of one
    that was trained from it; `base_loras` are fused into the weights, but not into that; `quantization` is a
    PipelineQuantizationConfig of diffusers. Raises CheckpointError that names the model if it is of no supported kind, or does not load.
    """
    check_folder(resolve(name), variant)
    return _pipeline(
        name,
        revision=revision,
        variant=variant,
        dtype=dtype,
        vae=vae,
        device_map=device_map,
        quantization=quantization,
        denoiser=denoiser,
        trained=trained,
        base_loras=base_loras,
    )


def _pipeline(
    name: str,
    *,
    revision: str | None,
    variant: str | None,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    vae: str | None = None,
    device_map: str | None = None,
    quantization: Any = None,
    denoiser: Path | None = None,
    trained: Path | None = None,
    base_loras: Sequence[BaseLora] = (),
) -> Any:
    """Return the pipeline of a folder that has been checked, or of a hub id."""
    index, layout = model_index(name, revision)
    options: dict[str, Any] = {"local_files_only": cache_only(name, INDEX, revision)}
    options |= {"revision": revision, "variant": variant, "dtype": dtype, "device_map": device_map}
    options |= BACKBONES[layout.family].pipeline_options
    # A part that the index names as absent must be passed as absent, else diffusers takes it for missing.
    options |= dict.fromkeys(part for part in layout.optional if (index.get(part) or [None])[0] is None)
    if vae is not None:
        kind: Any = AutoencoderKL
        options["vae"] = _load(kind, vae, {"dtype": _of(dtype, "vae")})
    if (stand_in := trained or denoiser) is not None:
        options[layout.component] = _stand_in(name, index[layout.component][1], stand_in, layout, revision, dtype)
    if quantization is not None:
        options["quantization_config"] = quantization
    if device_map is None:
        options |= {part: _encoder(name, index, part, revision, variant, _of(dtype, part)) for part in _encoders(index, layout)}
    pipe = _load(getattr(diffusers, index["_class_name"]), name, options)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            check_finite(name, part)
    for lora in base_loras:
        logger.info("%s: with %s at strength %g fused in (base_lora)", name, lora.file, lora.strength)
        for part, adapter in lora_adapters(lora.file, pipe).items():
            if trained is None or part != layout.component:
                fuse(getattr(pipe, part), adapter, lora.strength)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _stand_in(
    name: str, kind: str, path: Path, layout: Layout, revision: str | None, dtype: torch.dtype | Mapping[str, torch.dtype]
) -> Any:
    """Return the denoiser of a file or folder that takes the place of a model's own, built by the model's config."""
    network: Any = getattr(diffusers, kind)
    config = network.load_config(resolve(name), subfolder=layout.component, revision=revision)
    if is_quantised(path):
        return quantised_denoiser(path, config, network, _of(dtype, layout.component))
    return read_network(network, denoiser_folder(path, config, network), config, dtype=_of(dtype, layout.component))


def lora_adapters(path: Path, pipe: Any) -> dict[str, AdapterFile]:
    """Return the adapters of a LoRA file in the layout of any program, by the part of a stock pipeline that they are for.

    The networks of the pipeline have no adapters, and may be without numbers. Raises CheckpointError as `read_lora`.
    """
    family = BACKBONES[family_of(pipe)]
    denoiser: Any = getattr(pipe, family.component)
    networks = {name: part for name, part in pipe.components.items() if name in (family.component, *TEXT_ENCODERS) and part is not None}
    return read_lora(path, networks, family.component, lambda layer: family.place(layer, denoiser.config))


def _encoders(index: Mapping[str, Any], layout: Layout) -> list[str]:
    """Return the text encoders of a pipeline."""
    return [part for part in (*layout.needed, *layout.optional) if part.startswith("text_encoder") and (index.get(part) or [None])[0]]


def part_class(library: str, kind: str) -> Any:
    """Return a class of a pipeline's index, of transformers, diffusers, or one of diffusers' pipelines (`kolors`)."""
    return getattr(importlib.import_module(library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"), kind)


def _encoder(name: str, index: Mapping[str, Any], part: str, revision: str | None, variant: str | None, dtype: torch.dtype) -> Any:
    """Return a text encoder. The pipeline's own loader passes over weights that are missing, and transformers draws them at random."""
    kind = part_class(*index[part])
    folder = Path(resolve(name)) / part
    if folder.is_dir() and variant is not None and not list(folder.glob(f"*.{variant}*.safetensors")):
        variant = None  # as in diffusers, an encoder without weights of the variant falls back to its plain ones
    try:
        return whole(kind, resolve(name), revision, subfolder=part, variant=variant, dtype=dtype)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: its {part} does not load as a {kind.__name__} ({error})") from error


def load_backbone(
    name: str,
    device: torch.device,
    *,
    precision: torch.dtype = torch.float32,
    full: bool = False,
    settings: BackboneSettings | None = None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
    quantization: Any = None,
    denoiser: Path | None = None,
    base_loras: Sequence[BaseLora] = (),
    check: bool = True,
    spread: bool = False,
) -> Pretrained:
    """Return a model on `device` that computes in `precision`; without `check`, from a folder that has been checked already.

    The denoiser lies in `precision` as well, unless all of it is to be trained (`full`): weights that an optimiser moves stay float32.
    One that is to be `spread` over processes waits on the CPU for `models.sharded.shard`.
    """
    if check:
        check_folder(resolve(name), variant)
    layout = model_index(name, revision)[1]
    dtypes = part_dtypes(layout, precision, full=full, own_vae=vae is None)
    mapped = PipelineQuantizationConfig(quant_mapping={layout.component: quantization}) if quantization is not None else None
    options: dict[str, Any] = {"vae": vae, "denoiser": denoiser, "quantization": mapped, "base_loras": base_loras}
    pipe = _pipeline(name, revision=revision, variant=variant, dtype=dtypes, **options)
    if (text := warning(name, pipe, layout.family, layout.component)) is not None:
        logger.warning("%s", text)
    return BACKBONES[layout.family](_placed(pipe, device, layout.component if spread else None), name, precision, settings)


def _placed(pipe: Any, device: torch.device, left: str | None) -> Any:
    """Return a pipeline moved to a device, but for the part that is `left` on the CPU."""
    if left is None:
        return pipe.to(device)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name != left:
            part.to(device)
    return pipe


def part_dtypes(layout: Layout, precision: torch.dtype, *, full: bool, own_vae: bool) -> dict[str, torch.dtype]:
    """Return the dtype of each part, and of the others as "default", where a denoiser computes in `precision`.

    The model's own VAE overflows in half precision, so it stays float32. Encoders run once; T5 and language models are too large for
    float32, and overflow in float16.
    """
    names = (layout.large,) if isinstance(layout.large, str) else layout.large or ()
    large = {} if precision == torch.float32 else dict.fromkeys(names, torch.bfloat16)
    vae = torch.float32 if own_vae else precision
    return {"default": torch.float32, layout.component: torch.float32 if full else precision, "vae": vae, **large}


def load_denoiser(name: str, *, revision: str | None = None, variant: str | None = None) -> Any:
    """Return the denoiser alone, float32 and frozen. Raises CheckpointError that names the model if it does not load."""
    check_folder(resolve(name), variant)
    index, layout = model_index(name, revision)
    options = {"subfolder": layout.component, "revision": revision, "variant": variant, "dtype": torch.float32}
    return _load(getattr(diffusers, index[layout.component][1]), name, options).requires_grad_(False).eval()


def check_guided(name: str, revision: str | None = None) -> None:
    """Raise ConfigError for a model that cannot be drawn with guidance at all; only its config is fetched."""
    index, layout = model_index(name, revision)
    kind = getattr(diffusers, index[layout.component][1])
    config = kind.load_config(resolve(name), subfolder=layout.component, revision=revision)
    if (why := BACKBONES[layout.family].unguided(config)) is not None:
        raise ConfigError(f"{name}: {why}")


def _of(dtype: torch.dtype | Mapping[str, torch.dtype], part: str) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else dtype.get(part, dtype.get("default", torch.float32))


def model_index(name: str, revision: str | None = None) -> tuple[dict[str, Any], Layout]:
    """Return model_index.json and the layout of its class; of a hub id, only that file is fetched.

    Raises CheckpointError for what is no pipeline, or of no supported kind.
    """
    offline = cache_only(name, INDEX, revision)
    try:
        index: Any = DiffusionPipeline.load_config(resolve(name), revision=revision, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: no diffusers pipeline ({error})") from error
    return index, layout_of_index(index, name)


def _load(kind: Any, name: str, options: dict[str, Any]) -> Any:
    try:
        return kind.from_pretrained(resolve(name), use_safetensors=True, **options)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: does not load as a {kind.__name__} ({error})") from error
