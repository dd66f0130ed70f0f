"""Finds and checks model folders by their files alone, before torch or any weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffalign.core.documents import check_types, read_mapping
from diffalign.core.errors import CheckpointError, shortened
from diffalign.core.weight_files import check_whole
from diffalign.models.backbones import mistaken, single_file

LIBRARIES = ("diffusers", "transformers", "kolors", "stable_diffusion", None)  # the last two are how diffusers calls parts of its own
EMBEDDED = {
    f"{root}{name}": name for name in ("tiny-sd", "tiny-sd3", "tiny-lm", "tiny-lm/sem_dpo", "tiny-sd/personal") for root in ("assets/", "")
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a pipeline class is made of."""

    family: str  # a key of BACKBONES
    component: str  # the denoiser
    needed: tuple[str, ...]  # parts it cannot do without
    optional: tuple[str, ...] = ()  # parts that hold weights or words, and may be absent
    large: str | tuple[str, ...] | None = None  # the text encoders that are too large for float32, and read prompts of any length
    flow: bool = False  # a flow-matching model
    guidance: bool = False  # distilled: it is told the guidance scale
    users: bool = True  # takes a user branch
    steers: bool = True  # can be drawn with negative guidance
    controls: bool = False  # takes a ControlNet
    picture: Literal["none", "optional", "needed"] = "none"  # whether it takes an input picture beside the prompt, as edit models do
    clip: bool = False  # reads prompts with CLIP alone, whose text encoders can be trained

    @property
    def traits(self) -> set[str]:
        """Return which of `TRAITS` it has."""
        return {name for name in TRAITS if getattr(self, name)}


_SD3_ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
_ONE = ("vae", "text_encoder", "tokenizer", "scheduler")
_FOUR = ("vae", "scheduler", *_SD3_ENCODERS, "text_encoder_4", "tokenizer_4")
_TWO = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
LAYOUTS = {
    "StableDiffusionPipeline": Layout("sd", "unet", _ONE, controls=True, clip=True),
    "StableDiffusionXLPipeline": Layout("sdxl", "unet", _TWO, controls=True, clip=True),
    "KolorsPipeline": Layout("kolors", "unet", _ONE, large="text_encoder", users=False),
    "PixArtAlphaPipeline": Layout("pixart", "transformer", _ONE, large="text_encoder"),
    "PixArtSigmaPipeline": Layout("pixart", "transformer", _ONE, large="text_encoder"),
    "StableDiffusion3Pipeline": Layout(
        "sd3", "transformer", ("vae", "scheduler"), _SD3_ENCODERS, "text_encoder_3", flow=True, controls=True
    ),
    "FluxPipeline": Layout("flux", "transformer", _TWO, large="text_encoder_2", flow=True, guidance=True, controls=True),
    "FluxKontextPipeline": Layout(
        "flux_kontext", "transformer", _TWO, large="text_encoder_2", flow=True, guidance=True, users=False, steers=False, picture="needed"
    ),
    "ZImagePipeline": Layout("z_image", "transformer", _ONE, large="text_encoder", flow=True, users=False, steers=False),
    "QwenImagePipeline": Layout("qwen_image", "transformer", _ONE, large="text_encoder", flow=True, users=False),
    **{
        f"QwenImageEdit{version}Pipeline": Layout(
            "qwen_image_edit", "transformer", (*_ONE, "processor"), large="text_encoder", flow=True, users=False, picture="needed"
        )
        for version in ("", "Plus")
    },
    "ChromaPipeline": Layout("chroma", "transformer", _ONE, large="text_encoder", flow=True, users=False, steers=False),
    "Lumina2Pipeline": Layout("lumina2", "transformer", _ONE, large="text_encoder", flow=True, users=False, steers=False),
    "CogView4Pipeline": Layout("cogview4", "transformer", _ONE, large="text_encoder", flow=True, users=False),
    "Flux2Pipeline": Layout(
        "flux2", "transformer", _ONE, large="text_encoder", flow=True, guidance=True, users=False, steers=False, picture="optional"
    ),
    "Flux2KleinPipeline": Layout("flux2", "transformer", _ONE, large="text_encoder", flow=True, users=False, picture="optional"),
    "SanaPipeline": Layout("sana", "transformer", _ONE, large="text_encoder", flow=True, users=False),
    "Krea2Pipeline": Layout("krea2", "transformer", _ONE, large="text_encoder", flow=True, users=False, steers=False),
    "HiDreamImagePipeline": Layout("hidream", "transformer", _FOUR, large=("text_encoder_3", "text_encoder_4"), flow=True, users=False),
    "OvisImagePipeline": Layout("ovis_image", "transformer", _ONE, large="text_encoder", flow=True, users=False),
    "ErnieImagePipeline": Layout("ernie_image", "transformer", _ONE, large="text_encoder", flow=True, users=False, steers=False),
}

# Traits that a key of the config may ask for.
TRAITS = {
    "flow": "flow models",
    "guidance": "guidance-distilled models",
    "large": "the prompts of T5 and language models",
    "clip": "models that read prompts with CLIP alone",
}


def owners(trait: str) -> str:
    """Return a trait in words, with the families that have it."""
    families = dict.fromkeys(layout.family for layout in LAYOUTS.values() if trait in layout.traits)
    return f"{TRAITS[trait]} ({', '.join(families)})"


def resolve(name: str) -> str:
    """Return `name`, or the folder that it stands for: of an embedded model, wherever the package is installed; of a single-file model."""
    if mistaken.names_weights(name) and single_file.is_model(Path(name)):
        return str(single_file.folder_of(Path(name)))
    if name in EMBEDDED and not Path(name).exists():
        package = Path(__file__).resolve().parents[2]
        for root in (package.parent / "assets", package / "_assets"):
            if (root / EMBEDDED[name]).is_dir():
                return str(root / EMBEDDED[name])
    return name


def unpack(name: str, configs: str | None) -> None:
    """Make the folder that a single-file model is read from by its `configs`. Raises CheckpointError where the file is no model."""
    if configs is None:
        return
    if not single_file.is_model(Path(name)):
        raise CheckpointError(f"{name}: `config_folder` goes with a .safetensors file that holds a whole model")
    single_file.folder_of(Path(name), Path(configs))


def lasting(name: str) -> str:
    """Return `name` in a form that means the same from any working directory: the full path of a folder or file, else the name itself."""
    return str(Path(name).resolve()) if Path(name).exists() and name not in EMBEDDED else name


def is_local(name: str) -> bool:
    """Return whether `name` means a folder rather than a hub id."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1 or mistaken.names_weights(name)


def layout_of(kind: Any, where: str) -> Layout:
    """Return the layout of the pipeline class `kind`. Raises CheckpointError for one that is not supported, with the list."""
    if kind not in LAYOUTS:
        raise CheckpointError(f"{where}: a {kind}; supported are {', '.join(LAYOUTS)}")
    return LAYOUTS[kind]


def names_class(value: Any) -> bool:
    """Return whether an entry of a pipeline's index stands for a part, and not for a number, a flag, or a list of numbers."""
    return isinstance(value, list | tuple) and not (value and all(isinstance(entry, int) for entry in value))


def layout_of_index(parts: Mapping[str, Any], where: str) -> Layout:
    """Return the layout of a pipeline's index. Raises CheckpointError for one that is not supported, or has classes from elsewhere."""
    kind = parts.get("_class_name")
    if not isinstance(kind, str):
        raise CheckpointError(f"{where}: names no pipeline class (`_class_name` is {shortened(repr(kind))})")
    layout = layout_of(kind, where)
    for part, value in parts.items():
        needed = part in (layout.component, *layout.needed)
        if part.startswith("_") or not (names_class(value) or (needed and isinstance(value, list))):
            continue
        # Diffusers imports what stands here, and a model that was downloaded is to run nothing of its own.
        is_class = len(value) == 2 and all(entry is None or isinstance(entry, str) for entry in value) and value[0] in LIBRARIES
        if not is_class or (needed and None in value):
            raise CheckpointError(
                f"{where}: `{part}` is {shortened(repr(value))}; expected a class of diffusers or transformers, as [library, class]"
            )
    return layout


def without_t5(name: str) -> bool:
    """Return whether a local model folder is an SD3 without T5, whose zeros need not be many."""
    index = Path(resolve(name)) / "model_index.json"
    parts = read_mapping(index, CheckpointError) if index.is_file() else {}
    return parts.get("_class_name") == "StableDiffusion3Pipeline" and not _has_part(parts, "text_encoder_3")


def _has_part(parts: Mapping[str, Any], name: str) -> bool:
    """Return whether a pipeline's index names a class for a part; one that the pipeline is without stands there as [null, null]."""
    value = parts.get(name)
    return isinstance(value, list) and bool(value) and value[0] is not None


def is_language_model(name: str) -> bool:
    """Return whether a local folder looks like a language model's: a config.json, and no pipeline's index."""
    path = Path(resolve(name))
    return (path / "config.json").is_file() and not (path / "model_index.json").is_file()


def check_language_model(name: str, variant: str | None = None) -> None:
    """Raise CheckpointError for a local folder that is no causal language model with safetensors weights and a tokenizer."""
    path = Path(resolve(name))
    mistaken.refuse(resolve(name))
    facts = read_mapping(path / "config.json", CheckpointError)
    check_types(facts, {"architectures": (list,)}, str(path / "config.json"), CheckpointError)
    kinds = [str(kind) for kind in facts.get("architectures") or []]
    if not any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        described = " and ".join(kinds) or "names no architecture"
        raise CheckpointError(
            f"{name}: {described}; expected a causal language model of transformers (...ForCausalLM), or a diffusers pipeline"
        )
    _check_weights(path, variant, needed=True)
    if not (path / "tokenizer_config.json").is_file() and not (path / "tokenizer.json").is_file():
        raise CheckpointError(f"{name}: the folder has no tokenizer; expected tokenizer.json, as `tokenizer.save_pretrained` writes it")


def check_folder(name: str, variant: str | None = None) -> str | None:
    """Return the pipeline class of a local model folder, None for a hub id.

    Raises CheckpointError if the folder is missing, is no diffusers pipeline of a supported kind, lacks a part, or has no
    safetensors weights. The denoiser's must be of `variant`; as in diffusers, an encoder without them falls back to its plain ones.
    """
    path = Path(name)
    if not is_local(name):
        return None
    mistaken.refuse(name)
    if not path.is_dir():
        raise CheckpointError(f"{name}: there is no such model folder; expected a folder in diffusers layout or a hub id like `owner/name`")
    index = path / "model_index.json"
    if not index.is_file():
        raise CheckpointError(f"{name}: no model_index.json; expected a folder in diffusers layout, as `save_pretrained` writes it")
    parts = read_mapping(index, CheckpointError)
    layout = layout_of_index(parts, str(index))
    kind = str(parts["_class_name"])
    needed = (layout.component, *layout.needed)
    present = [part for part in layout.optional if _has_part(parts, part)]
    for part in (*needed, *present):
        if not (path / part).is_dir():
            raise CheckpointError(f"{name}: the folder has no `{part}`; a {kind} needs {', '.join(needed)}")
        if part.startswith(("vae", "text_encoder", layout.component)):
            _check_weights(path / part, variant, needed=part == layout.component)
    return kind


def _check_weights(folder: Path, variant: str | None, *, needed: bool) -> None:
    """Raise CheckpointError if a part has no safetensors, none of the variant where `needed`, or those of a variant alone."""
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no safetensors weights; pickled weights are not loaded, convert them first")
    check_whole(folder)
    # Of a variant are model.fp16.safetensors, and in pieces model.fp16-00001-of-00002 or model-00001-of-00002.fp16.
    if variant is not None and any(re.search(rf"\.{re.escape(variant)}[.-]", name) for name in files):
        return
    if variant is not None and needed:
        raise CheckpointError(f"{folder}: no weights of variant `{variant}`; found {', '.join(files)}")
    if all("." in Path(name).stem for name in files):
        raise CheckpointError(f"{folder}: only weights of a variant, {', '.join(files)}; set `variant` to its name")
