"""Random edit models, as those of `tests.micro_models`, and the input pictures that they draw from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import FluxKontextPipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from diffalign.data.table import Table, write_table
from tests.micro_parts import EDIT_TEMPLATE, SIDE, qwen_vl, vision_tokenizer

EDITS = ("flux_kontext", "qwen_image_edit")  # the families that need one
SMALLER = 32  # times as small as the stock pipelines', input pictures are read


@contextlib.contextmanager
def small_references() -> Iterator[None]:
    """Let the stock pipelines, and who asks them, read input pictures of about 32 pixels in the place of a thousand."""

    def sized(area: int, ratio: float) -> tuple[int, int, None]:
        side = area**0.5 / SMALLER
        return round(side * ratio**0.5 / 8) * 8, round(side / ratio**0.5 / 8) * 8, None

    sizes = [(SIDE - 8, SIDE + 8), (SIDE, SIDE), (SIDE + 16, SIDE)]
    with (
        mock.patch.object(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", sizes),
        mock.patch.object(pipeline_qwenimage_edit, "calculate_dimensions", sized),
        mock.patch.object(pipeline_qwenimage_edit_plus, "calculate_dimensions", lambda area, ratio: sized(area, ratio)[:2]),
        mock.patch.object(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", (16 * SMALLER) ** 2),
    ):
        yield


def flux_kontext(**schedule: Any) -> Any:
    """Return a Flux Kontext, which is told a guidance scale."""
    from tests.micro_models import flux  # which imports this file

    parts = {name: part for name, part in flux(**schedule).components.items() if name not in ("image_encoder", "feature_extractor")}
    return FluxKontextPipeline(**parts)


def qwen_image_edit(plus: bool = False, **schedule: Any) -> Any:
    """Return a Qwen-Image-Edit, or the later version that reads a small picture."""
    from tests.micro_models import qwen_image

    tokenizer = vision_tokenizer(EDIT_TEMPLATE)
    pixels = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}}
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels))
    parts = qwen_image(**schedule).components | {"tokenizer": tokenizer, "text_encoder": qwen_vl(tokenizer, patch=4)}
    return (QwenImageEditPlusPipeline if plus else QwenImageEditPipeline)(**parts, processor=processor)


def input_picture(seed: int = 0, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Return a picture of random colours."""
    levels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST)


def with_picture(pipe: Any, prompt: Any) -> dict[str, Any]:
    """Return the input picture of a call, one for each prompt, where the pipeline is an edit model's."""
    edits = any(mark in type(pipe).__name__ for mark in ("Kontext", "Edit"))
    return {"image": [input_picture()] * len(prompt) if isinstance(prompt, list) else input_picture()} if edits else {}


def condition_of(backbone: Any, prompts: Sequence[str], seed: int = 0, *, optional: bool = False) -> dict[str, Tensor]:
    """Return the condition of prompts, for an edit model beside that picture; with `optional` also for one that may be without."""
    if backbone.picture == "none" or (backbone.picture == "optional" and not optional):
        return dict(backbone.encode_prompt(prompts))
    picture = input_picture(seed, *((64, 64) if optional else ()))
    sizes = [own and own[::-1] for own in (size(picture.height, picture.width) for size in (backbone.reference_size, backbone.seen_size))]
    resized = [picture.resize(size, Image.Resampling.LANCZOS) if size else None for size in sizes]
    # In memory as stock pipelines have them, channels last, by which convolutions round.
    both = (one and torch.from_numpy(np.stack([np.array(one)] * len(prompts))).permute(0, 3, 1, 2) for one in resized)
    reference, seen = both
    return {**backbone.encode_edit(prompts, seen), "reference": backbone.encode_reference(reference)}


def with_inputs(table: Table, path: Path) -> Table:
    """Return a table of the same pairs as edits, each of the picture that was not preferred."""
    return write_table(path, [replace(record, conditioning_image=record.candidates[1].image) for record in table])
