"""What a path is that stands where a model folder or hub id is expected, and is neither: named for what it is, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError
from diffalign.core.weight_files import SUFFIX, names_of

INDEX, CONFIG = "model_index.json", "config.json"
WEIGHTS = (SUFFIX, ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".msgpack", ".h5")  # suffixes of files that hold weights
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
# By what the names of tensors contain, in this order: the pipeline that diffalign trains such a single-file checkpoint as.
SINGLE_FILES = {
    "conditioner.embedders": "StableDiffusionXLPipeline",
    "joint_blocks": "StableDiffusion3Pipeline",
    "double_blocks": "FluxPipeline",
    "cond_stage_model": "StableDiffusionPipeline",
}


def names_weights(name: str) -> bool:
    """Return whether a name is that of a file of weights, which is never a hub id."""
    return PurePath(name).suffix.lower() in WEIGHTS


def refuse(name: str) -> None:
    """Raise CheckpointError for a URL, a file, and a part of a model, saying what would do; pass over what may be a model folder."""
    path = Path(name)
    if URL.match(name):
        hub = HUB.match(name)
        cure = f"give the hub id {hub[1]}" if hub else "download the model, and give its folder, or a hub id like `owner/name`"
        raise CheckpointError(f"{name}: a URL, which is not fetched; {cure}")
    if path.is_file() or (names_weights(name) and not path.is_dir()):
        raise CheckpointError(f"{name}: {_file(path)}")
    if (whole := part_of(path)) is not None:
        raise CheckpointError(f"{name}: the part `{path.name}` of the model in {whole}; give {whole}")
    kind = read_mapping(path / CONFIG, CheckpointError).get("_class_name") if (path / CONFIG).is_file() else None
    if kind is not None and not (path / INDEX).is_file():
        raise CheckpointError(f"{name}: a single network ({kind}), and no pipeline; give the folder with {INDEX} that it belongs to")
    if not path.exists() and name.count("/") > 1 and re.fullmatch(r"[\w.-]+/[\w.-]+/[\w./-]+", name):
        owner, model, _ = name.split("/", 2)
        raise CheckpointError(f"{name}: there is no such folder, and a hub id has one slash; of a part of a model, give {owner}/{model}")


def refuse_vae(name: str) -> None:
    """Raise CheckpointError for a path that holds no autoencoder of diffusers where one is to stand in for a model's own."""
    path = Path(name)
    if URL.match(name) or names_weights(name) or path.is_file():
        raise CheckpointError(f"{name}: a URL or a file; a VAE is a folder with {CONFIG} and safetensors, or a hub id like `owner/name`")
    if path.is_dir() and (path / INDEX).is_file():
        raise CheckpointError(f"{name}: a whole model; its VAE is {path / 'vae'}")
    if path.is_dir():
        kind = read_mapping(path / CONFIG, CheckpointError).get("_class_name")
        if kind != "AutoencoderKL":
            raise CheckpointError(f"{path / CONFIG}: a {kind}; expected an AutoencoderKL")


def refuse_denoiser(name: str) -> None:
    """Raise CheckpointError for a path that holds no denoiser where one is to stand in for a model's own."""
    path = Path(name)
    expected = "expected a .safetensors or .gguf file of a denoiser, or its folder in diffusers layout"
    if path.is_dir():
        if (path / INDEX).is_file() or not (path / CONFIG).is_file():
            raise CheckpointError(f"{name}: {'a whole model' if (path / INDEX).is_file() else f'has no {CONFIG}'}; {expected}")
        return
    if path.suffix not in (SUFFIX, ".gguf") or not path.is_file():
        raise CheckpointError(f"{name}: {'another kind of file' if path.is_file() else 'there is no such file'}; {expected}")
    if path.suffix == SUFFIX and any("lora_" in tensor or ".lora" in tensor for tensor in names_of(path)):
        raise CheckpointError(f"{name}: a LoRA adapter, and no denoiser; give it to --base_lora or --start_from_lora")


def part_of(path: Path) -> Path | None:
    """Return the folder of the model that a folder is a part of, None for any other."""
    return path.parent if path.is_dir() and not (path / INDEX).is_file() and (path.parent / INDEX).is_file() else None


def _file(path: Path) -> str:
    """Return what a file is, and what would do in its place."""
    if path.suffix.lower() not in WEIGHTS:
        return "a file; expected a folder in diffusers layout, or a hub id like `owner/name`"
    if not path.is_file():
        return "there is no such file, and a file of weights is no model; expected a folder in diffusers layout, or a hub id"
    if (whole := part_of(path.parent)) is not None:
        return f"weights of the part `{path.parent.name}` of the model in {whole}; give {whole}"
    if path.suffix.lower() == ".gguf":
        return "a GGUF file, which is a denoiser alone; give it to --denoiser, and the folder or hub id of its model to this key"
    names = names_of(path) if path.suffix == SUFFIX else []
    if any("lora_" in name or ".lora" in name for name in names):
        return "a LoRA adapter, and no model; give the folder or hub id of the model that it goes on"
    if names and not any(name.startswith("first_stage_model.") for name in names):
        return (
            "weights of a denoiser alone, without autoencoder and text encoders; give it to --denoiser, and the model that has these to "
            "--pretrained_model_name_or_path"
        )
    kind, folder = _single_file_class(names), path.with_suffix("")
    lines = f"from diffusers import {kind}\n  {kind}.from_single_file({str(path)!r}).save_pretrained({str(folder)!r})"
    what = "a single-file checkpoint that is no safetensors file of a whole model"
    return f"{what}; make a folder of it in Python with\n  {lines}\nand give that folder, {folder}"


def _single_file_class(names: Iterable[str]) -> str:
    names = list(names)
    return next((kind for mark, kind in SINGLE_FILES.items() if any(mark in name for name in names)), "StableDiffusionPipeline")
