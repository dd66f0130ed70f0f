"""Finds and checks model folders by their files alone, before torch or any weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from diffalign.errors import CheckpointError

EMBEDDED = {"assets/tiny-sd": "tiny-sd", "tiny-sd": "tiny-sd"}
SD_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def resolve(name: str) -> str:
    """Return `name`, or for the embedded models the folder they lie in wherever the package is installed."""
    if name in EMBEDDED and not Path(name).exists():
        package = Path(__file__).resolve().parents[1]
        for root in (package.parent / "assets", package / "_assets"):
            if (root / EMBEDDED[name]).is_dir():
                return str(root / EMBEDDED[name])
    return name


def lasting(name: str) -> str:
    """Return `name` in a form that means the same from any working directory: a folder's full path, else the name itself."""
    return str(Path(name).resolve()) if Path(name).is_dir() and name not in EMBEDDED else name


def is_local(name: str) -> bool:
    """Return whether `name` means a folder rather than a hub id."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1


def check_folder(name: str) -> str | None:
    """Return the pipeline class of a local model folder, None for a hub id.

    Raises CheckpointError if the folder is missing, is no diffusers pipeline, lacks a part, or has no safetensors weights.
    """
    path = Path(name)
    if not is_local(name):
        return None
    if not path.is_dir():
        raise CheckpointError(f"{name}: there is no such model folder; expected a folder in diffusers layout or a hub id like `owner/name`")
    index = path / "model_index.json"
    if not index.is_file():
        raise CheckpointError(f"{name}: no model_index.json; expected a folder in diffusers layout, as `save_pretrained` writes it")
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{index}: names no pipeline class ({error!r})") from error
    if kind != "StableDiffusionPipeline":
        raise CheckpointError(f"{name}: a {kind}; supported so far: StableDiffusionPipeline (SD 1.x and 2.x)")
    for part in SD_PARTS:
        if not (path / part).is_dir():
            raise CheckpointError(f"{name}: the folder has no `{part}`; a StableDiffusionPipeline needs {', '.join(SD_PARTS)}")
    for part in ("unet", "vae", "text_encoder"):
        if not list((path / part).glob("*.safetensors")):
            raise CheckpointError(f"{name}/{part}: no safetensors weights; pickled weights are not loaded, convert them first")
    return kind
