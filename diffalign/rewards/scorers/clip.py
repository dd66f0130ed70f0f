"""Scorers by a CLIP of transformers: PickScore, CLIPScore, and the aesthetic predictor of LAION."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoImageProcessor

from diffalign.core.errors import CheckpointError
from diffalign.data.units import PERCENT
from diffalign.models.clip import Clip, load_tokenizer
from diffalign.models.weights import UNREADABLE
from diffalign.rewards.scorers.frame import Frame
from diffalign.rewards.scorers.network import Network, fill, frozen, read_weights

PICKSCORE, CLIP_H = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_L = "openai/clip-vit-large-patch14"


def pickscore(*, model: str = PICKSCORE, processor: str | None = None, revision: str | None = None, device: str = "cpu") -> Network:
    """Return PickScore (2305.01569): exp(logit_scale) times the cosine of image and prompt.

    `model` is a folder or hub id of a CLIP; `processor` that of its tokenizer and image processor: the model's own, or CLIP ViT-H/14's
    where it has none, as the published one.
    """
    own = (Path(model) / "preprocessor_config.json").is_file()
    clip, frame, cosine = _compared(model, processor or (model if own else CLIP_H), revision, device)

    def formula(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return clip.network.logit_scale.exp() * cosine(pixels, prompts)

    scale = "100 times the cosine of image and prompt, usually 17 to 24; compares images of one prompt: chances are the softmax over them"
    return Network("pickscore", scale, "MIT (code; the weights name none)", clip.max_tokens, revision, frame, formula, device, PERCENT)


def clipscore(
    *,
    model: str = CLIP_L,
    weight: float = 2.5,
    prefix: str = "",
    revision: str | None = None,
    device: str = "cpu",
) -> Network:
    """Return CLIPScore (2104.08718): `weight` times the cosine of image and prompt, not below zero.

    The paper has weight 2.5, ViT-B/32 and captions that begin with the prefix "A photo depicts "; torchmetrics has weight 100.
    """
    clip, frame, cosine = _compared(model, model, revision, device)

    def formula(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return weight * cosine(pixels, [prefix + prompt for prompt in prompts]).clamp(min=0.0)

    scale = f"{weight:g} times the cosine of image and prompt of {model}, not below zero; usually {0.2 * weight:g} to {0.38 * weight:g}"
    return Network(
        "clipscore", scale, "MIT (OpenAI's and LAION's weights)", clip.max_tokens, revision, frame, formula, device, f"{weight:g} x cosine"
    )


def aesthetic(
    *,
    model: str = CLIP_L,
    head: str = "trl-lib/ddpo-aesthetic-predictor",
    revision: str | None = None,
    device: str = "cpu",
) -> Network:
    """Return LAION's aesthetic predictor v2: a linear head in five layers on the unit embedding of CLIP ViT-L/14; prompts are not read.

    `head` is a file, or a folder or hub id with the file aesthetic-model.pth: `sac+logos+ava1-l14-linearMSE.pth` by another name.
    `revision` is of `model`.
    """
    weights = read_weights(head, "aesthetic-model.pth")
    clip, frame = vision(model, revision, device)
    predictor = linear_head(weights["layers.0.weight"].shape[1] if "layers.0.weight" in weights else 1)
    fill(predictor, {key.removeprefix("layers."): value.float() for key, value in weights.items()}, head)
    frozen(predictor, device)

    def formula(pixels: Tensor, _: Sequence[str]) -> Tensor:
        return predictor(F.normalize(clip.images(pixels), dim=-1)).squeeze(-1)

    scale = "mean rating of people on 1 to 10, usually 4 to 7; prompts are not read"
    return Network("aesthetic", scale, "Apache-2.0 (head), MIT (CLIP)", None, revision, frame, formula, device, "points of 10")


def linear_head(width: int) -> nn.Sequential:
    """Return the head of the aesthetic predictor and of ImageReward: five linear layers, nothing between but dropout in training."""
    layers = [(width, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    parts: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(layers):
        parts += [nn.Linear(fan_in, fan_out), *([nn.Dropout(0.0)] if index < 3 else [])]
    return nn.Sequential(*parts)


Cosine = Callable[[Tensor, Sequence[str]], Tensor]


def _compared(name: str, processor: str, revision: str | None, device: str) -> tuple[Clip, Frame, Cosine]:
    """Return a CLIP, its frame, and the cosines (N,) of pixels and texts. Raises CheckpointError if any of its files does not load."""
    processor_revision = revision if processor == name else None
    clip = Clip.load(name, revision, device, "both", dtype=torch.float32)
    tokenizer = load_tokenizer(processor, processor_revision)

    def cosine(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        image, text = clip.images(pixels), clip.texts(tokenizer, texts)
        return (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(dim=-1)

    return clip, frame_of(processor, processor_revision), cosine


def vision(name: str, revision: str | None, device: str) -> tuple[Clip, Frame]:
    """Return the image half of a CLIP and its frame. Raises CheckpointError if it does not load."""
    return Clip.load(name, revision, device, "image", dtype=torch.float32), frame_of(name, revision)


def frame_of(name: str, revision: str | None) -> Frame:
    """Return what the image processor in a folder or on the hub does. Raises CheckpointError if it is none of a CLIP's."""
    try:
        facts = AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False).to_dict()
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no image processor can be loaded from here: {error}") from error
    side, crop = (facts.get("size") or {}).get("shortest_edge"), (facts.get("crop_size") or {}).get("height")
    if side is None or side != crop or int(facts.get("resample", 3)) != 3:
        raise CheckpointError(f"{name}: an image processor that does not resize bicubically and crop, as a CLIP's does")
    return Frame(side, "floor", tuple(facts["image_mean"]), tuple(facts["image_std"]))
