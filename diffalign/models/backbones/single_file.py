"""Models and denoisers in one file, as model sites offer them: made once into a folder in diffusers layout, which all else then reads.

The folder lies in the cache of huggingface_hub and is named by what is in the file, so a file that was moved is not converted again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from huggingface_hub.utils import WeakFileLock
from safetensors import safe_open

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError
from diffalign.core.files import atomic_folder
from diffalign.core.weight_files import DTYPES, SUFFIX, names_of
from diffalign.models.backbones.mistaken import SINGLE_FILES, refuse_denoiser

logger = logging.getLogger(__name__)
DENOISER, VAE = "model.diffusion_model.", "first_stage_model."  # where the layouts of single files have their parts
T5, SD3_CLIPS = "text_encoders.t5xxl.", ("text_encoders.clip_l.", "text_encoders.clip_g.")
ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
MOMENTS = {"latents_mean": "edm_mean", "latents_std": "edm_std"}  # of the latents of Playground v2.5, by the config's keys
BASE_STEPS = 875_000  # by which, as in the converters of the field, Stable Diffusion 2's epsilon models are told from its v ones


def is_model(path: Path) -> bool:
    """Return whether a file holds a whole model: a denoiser, an autoencoder and a text encoder."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    names = names_of(path)
    return all(any(name.startswith(part) for name in names) for part in (DENOISER, VAE, ENCODERS))


def folder_of(path: Path, configs: Path | None = None) -> Path:
    """Return the folder in diffusers layout of the model in a safetensors file; it is made the first time, in the cache.

    `configs` is a folder with the model's configs and tokenizers, in diffusers layout; where it is None, those of the published models
    are taken: SD 1.x, 2.x, XL, 3 and 3.5, and Playground v2.5. Raises CheckpointError that names the file for a model of
    another kind, for weights that are missing or cannot be trained (fp8), and for a disk that is too full.

    Example:
        >>> folder_of(Path("dreamshaper.safetensors"))  # doctest: +SKIP
    """
    folder = Path(cached_assets_path("diffalign", "single_files", _fingerprint(path)))
    with WeakFileLock(folder.with_suffix(".lock")):
        if not (folder / "model_index.json").is_file():
            _convert(path, folder, configs)
    return folder


def denoiser_folder(path: Path, config: Mapping[str, Any], kind: Any) -> Path:
    """Return the folder with the denoiser of class `kind` that a file holds, or a folder is; it is made the first time, in the cache.

    `config` is that of the network which it stands in for. Raises CheckpointError that says what the file looks like where it is no such
    denoiser, or cannot be trained (fp8).
    """
    refuse_denoiser(str(path))
    if path.is_dir():
        return path
    written = json.dumps(dict(config), sort_keys=True, default=str)
    mark = hashlib.blake2b(written.encode(), digest_size=8).hexdigest()
    folder = Path(cached_assets_path("diffalign", "denoisers", f"{_fingerprint(path)}-{mark}"))
    with WeakFileLock(folder.with_suffix(".lock")):
        if not (folder / "config.json").is_file():
            _begin(path, folder)
            network = _denoiser(path, written, kind)
            with atomic_folder(folder) as made:
                network.save_pretrained(made)
    return folder


def _denoiser(path: Path, config: str, kind: Any) -> Any:
    """Return the network of a file by diffusers' own converter, with the config of the base."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors.torch import load_file

    from diffalign.models.weights import UNREADABLE, check_finite

    tensors = load_file(path)
    if "input_blocks.0.0.weight" in tensors:  # as ComfyUI's folder has them, without the prefix
        tensors = {DENOISER + name: value for name, value in tensors.items()}
    looks = looks_like(tensors)
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(config)
            network = kind.from_single_file(tensors, config=folder, local_files_only=True)
        check_finite(str(path), network)  # also for weights that are not there
    except (*UNREADABLE, SingleFileComponentError, IndexError, CheckpointError) as error:
        raise CheckpointError(f"{path}: looks like {looks}, and does not load as the {kind.__name__} of this base ({error})") from error
    return network


def looks_like(tensors: Mapping[str, Any]) -> str:
    """Return the kind of checkpoint that tensors are, as diffusers calls it, which takes what it does not know for v1."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    kind = infer_diffusers_model_type(dict(tensors))
    if kind != "v1" or any("input_blocks" in name for name in tensors):
        return kind
    pipelines = (pipeline for mark, pipeline in SINGLE_FILES.items() if any(mark in name for name in tensors))
    return next((f"a {pipeline}" for pipeline in pipelines), f"no published checkpoint (it has `{min(tensors, default='')}`)")


def _begin(path: Path, folder: Path) -> None:
    """Say that a folder is made of a file. Raises CheckpointError where the disk is too full, or its weights cannot be trained."""
    size, free = path.stat().st_size, shutil.disk_usage(folder).free
    if free < 1.05 * size:
        raise CheckpointError(
            f"{path}: a folder in diffusers layout is made of it in {folder.parent} (HF_HOME), which needs {size / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free"
        )
    _check_dtypes(path)
    logger.info("%s: a folder in diffusers layout is made of it in %s, this once", path, folder)


def _convert(path: Path, folder: Path, configs: Path | None) -> None:
    _begin(path, folder)
    with tempfile.TemporaryDirectory() as temporary:
        if configs is None:
            write_published(path, Path(temporary))
        pipe = _load(path, configs or Path(temporary), f"the configs in {configs}" if configs else "the published configs")
    with atomic_folder(folder) as made:
        pipe.save_pretrained(made)


def _load(path: Path, configs: Path, whose: str) -> Any:
    """Return the pipeline of a file, with every weight that it needs."""
    import diffusers
    import torch

    from diffalign.models.backbones.folders import layout_of_index
    from diffalign.models.weights import UNREADABLE, check_finite

    index = read_mapping(configs / "model_index.json", CheckpointError)
    layout_of_index(index, str(configs))
    kind: Any = getattr(diffusers, index["_class_name"])
    absent = {name: None for name, value in index.items() if isinstance(value, list) and value[0] is None}
    try:
        pipe = kind.from_single_file(str(path), config=str(configs), local_files_only=True, **absent)
    except UNREADABLE as error:
        why = "it lacks weights of theirs" if isinstance(error, NotImplementedError) else error  # tensors that have stayed on meta
        raise CheckpointError(f"{path}: does not load as a {kind.__name__} with {whose} ({why})") from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            check_finite(str(path), part)
    return pipe


def write_published(path: Path, folder: Path) -> None:
    """Write the configs of the published model that a file is one of."""
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    from diffalign.models.backbones.published import PUBLISHED, write_configs

    with safe_open(path, framework="pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118  # a safe_open is no mapping
        facts, steps = opened.metadata() or {}, opened.get_tensor("global_step").item() if "global_step" in shapes else None
        moments = {name: opened.get_tensor(key).flatten().tolist() for name, key in MOMENTS.items() if key in shapes}
    kind = infer_diffusers_model_type({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    cure = "; give --config_folder, the folder of its configs and tokenizers in diffusers layout (its weights are not needed)"
    if kind not in PUBLISHED:
        raise CheckpointError(f"{path}: looks like {kind}, whose configs are not part of diffalign{cure}")
    if any(name.startswith(T5) for name in shapes):
        raise CheckpointError(f"{path}: has T5, whose tokenizer is in no package{cure}")
    if kind.startswith("sd3") and not all(any(name.startswith(part) for name in shapes) for part in SD3_CLIPS):
        raise CheckpointError(f"{path}: lacks one of its two CLIP text encoders{cure}, or a file that includes them")
    configs = PUBLISHED[kind]
    scheduler = configs["scheduler"] | _prediction(kind, shapes, facts, steps)
    write_configs(configs | {"scheduler": scheduler, "vae": configs["vae"] | moments}, folder)


def _prediction(kind: str, names: Mapping[str, Any], facts: Mapping[str, str], steps: int | None) -> dict[str, Any]:
    """Return what a file says of its noise schedule: by the keys `v_pred` and `ztsnr`, its metadata, or the steps of SD 2's training."""
    if kind.startswith(("sd3", "playground")):
        return {}
    written = facts.get("modelspec.prediction_type", "") or facts.get("modelspec.architecture", "")
    velocity = "v_pred" in names or written == "v" or written.endswith("-v")
    if kind == "v2" and not written:
        velocity = velocity or steps != BASE_STEPS
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in names else {}
    return {"prediction_type": "v_prediction" if velocity else "epsilon", **zero}


def _check_dtypes(path: Path) -> None:
    """Raise CheckpointError for a file whose denoiser is of numbers that are not trained in."""
    with safe_open(path, framework="numpy") as opened:
        names = list(opened.keys())
        denoiser = [name for name in names if name.startswith(DENOISER)] or names
        dtypes = Counter(opened.get_slice(name).get_dtype() for name in denoiser)
    dtype = dtypes.most_common(1)[0][0]
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: its weights are {dtype}, which cannot be trained; give a file of fp16, bf16 or float32 (one of fp8 goes to "
            "--denoiser, beside the folder or hub id of its model, as the frozen base of a LoRA)"
        )


def _fingerprint(path: Path) -> str:
    """Return a hash of a file's size, its beginning (the names and shapes of all tensors) and its end."""
    with path.open("rb") as opened:
        digest = hashlib.blake2b(str(path.stat().st_size).encode(), digest_size=8)
        length = int.from_bytes(opened.read(8), "little")
        digest.update(opened.read(min(length, 2**26) + 2**20))
        opened.seek(max(0, path.stat().st_size - 2**20))
        digest.update(opened.read())
    return digest.hexdigest()
