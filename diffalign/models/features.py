"""What the set encoder sees of a picture: the denoiser's own latents, or a CLIP's image embedding. Computed once, never trained."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoImageProcessor

from diffalign.core.errors import CheckpointError, ConfigError, did_you_mean
from diffalign.data.cache import fingerprint as hashed
from diffalign.data.pixels import center_crop
from diffalign.models.clip import Clip, config_of
from diffalign.models.weights import UNREADABLE, weights_hash, weights_mark

SIDE = 8  # of the latents, at most: enough to tell colours and places, and 256 numbers for four channels
BATCH = 32  # images at once
OPEN_CLIP = "open_clip:"


class Features(Protocol):
    """Pictures to vectors."""

    @property
    def fingerprint(self) -> str:
        """Return a hash that changes when the vectors would: caches are keyed by it."""
        ...

    @property
    def source(self) -> str:
        """Return a hash of the network and the preprocessing, the same in every precision: encoders are only good with one."""
        ...

    @property
    def width(self) -> int:
        """Return F, how long a vector is."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (N, F) of N >= 1 RGB images, float32, on the CPU, without gradient; entries are of about unit scale."""
        ...


class LatentSource(Protocol):
    """The part of a backbone that latents are made with."""

    resolution: int

    def encode_image(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return latents (N, C, H, W) of pixels (N, 3, h, w) in [-1, 1]."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the latent of an image in pixels."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the encoders."""
        ...

    def vae_fingerprint(self) -> str:
        """Return a hash of the part that encodes images, the same in every precision."""
        ...


def features(spec: str, source: LatentSource, *, revision: str | None = None, device: torch.device | str = "cpu") -> Features:
    """Return the features that `spec` names: `latents` (those of `source`), or a CLIP as `ClipFeatures` takes it."""
    if spec == "latents":
        hashes = source.fingerprint(), source.vae_fingerprint()
        return LatentFeatures(source.encode_image, source.latent_shape, source.resolution, *hashes)
    return ClipFeatures(spec, revision, device)


class LatentFeatures:
    """The posterior's mean of the middle of a picture, averaged down to at most 8 by 8, flat."""

    def __init__(
        self,
        encode_image: Callable[[Tensor, Tensor], Tensor],
        latent_shape: Callable[[int, int], tuple[int, int, int]],
        resolution: int,
        fingerprint: str,
        vae: str,
    ) -> None:
        self._encode, self._resolution = encode_image, resolution
        self._shape = latent_shape(resolution, resolution)
        self._side = (min(self._shape[1], SIDE), min(self._shape[2], SIDE))
        self.width = self._shape[0] * math.prod(self._side)
        facts = {"features": "latents", "resolution": resolution, "side": self._side}
        self.fingerprint, self.source = hashed({**facts, "encoders": fingerprint}), hashed({**facts, "vae": vae})

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (N, F), float32, on the CPU."""
        rows = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([center_crop(image, self._resolution) for image in images[start : start + BATCH]])
            latents = self._encode(pixels, torch.zeros(len(pixels), *self._shape))
            rows.append(F.adaptive_avg_pool2d(latents.float(), self._side).flatten(1).cpu())
        return torch.cat(rows)


class ClipFeatures:
    """A CLIP's image embeddings, of length sqrt(F), so that their entries are of about unit scale.

    `name` is a folder or hub id of a CLIP of transformers, or `open_clip:ARCHITECTURE:PRETRAINED` with a tag of open_clip or a
    safetensors file. Pickled weights are never read. Raises ConfigError for a name that cannot be one, CheckpointError for a model
    that is missing, incomplete or none of these.
    """

    def __init__(self, name: str, revision: str | None = None, device: torch.device | str = "cpu") -> None:
        make = _open_clip if name.startswith(OPEN_CLIP) else _transformers
        self.network, self._embed, self._prepare, facts = make(name, revision)
        self._device = torch.device(device)
        self.network.to(self._device).requires_grad_(False).eval()
        self.fingerprint, self.source = (
            hashed({"features": "clip", "weights": of(self.network), "preprocessing": facts}) for of in (weights_hash, weights_mark)
        )
        self.width = self(2 * [Image.new("RGB", (64, 64))]).shape[1]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (N, F), float32, on the CPU."""
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        embeds = torch.cat([self._embed(self._prepare(part).to(self._device)).float().cpu() for part in parts])
        return F.normalize(embeds, dim=1) * math.sqrt(embeds.shape[1])


Loaded = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Sequence[Image.Image]], Tensor], str]  # and what the preprocessing is


def _transformers(name: str, revision: str | None) -> Loaded:
    """Return a CLIP of transformers; of a whole one the projection is as wide as its own config says."""
    clip = Clip.load(name, revision, "cpu", "either")
    try:
        processor = AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no CLIP can be loaded from here: {error}") from error

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        return processor(images=list(images), return_tensors="pt")["pixel_values"]

    return clip.network, clip.images, prepare, processor.to_json_string()


def clip_width(name: str, revision: str | None = None) -> int:
    """Return F of a CLIP that `ClipFeatures` takes, from its config alone. Raises what that does for one that is missing, or none."""
    if name.startswith(OPEN_CLIP):
        import open_clip  # as below

        config: Any = open_clip.get_model_config(_architecture(name)[0])
        return int(config["embed_dim"])
    try:
        return int(config_of(name, revision).projection_dim)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no CLIP can be loaded from here: {error}") from error


def _open_clip(name: str, revision: str | None) -> Loaded:
    import open_clip  # takes seconds, and is needed for these features alone

    architecture, weights = _architecture(name)
    facts = open_clip.get_pretrained_cfg(architecture, weights)
    file = _published(name, facts, revision) if facts else _local(name, weights, open_clip.list_pretrained_tags_by_model(architecture))
    try:
        loaded: Any = open_clip.create_model_from_pretrained(
            architecture,
            pretrained=str(file),
            force_quick_gelu=facts.get("quick_gelu", False),
            image_mean=facts.get("mean"),
            image_std=facts.get("std"),
            image_interpolation=facts.get("interpolation"),
            image_resize_mode=facts.get("resize_mode"),
        )
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{file}: no weights of open_clip's {architecture}: {error}") from error
    network, prepare = loaded

    def prepared(images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([prepare(image) for image in images])

    return network, network.encode_image, prepared, repr(sorted(network.visual.preprocess_cfg.items()))


def _architecture(name: str) -> tuple[str, str]:
    """Return the architecture of open_clip, and the weights, that a name means."""
    import open_clip  # as above

    architecture, _, weights = name.removeprefix(OPEN_CLIP).partition(":")
    if architecture not in open_clip.list_models():
        hint = did_you_mean(architecture, open_clip.list_models())
        raise ConfigError(f"{name}: open_clip has no architecture `{architecture}`.{hint}")
    return architecture, weights


def _local(name: str, weights: str, tags: Sequence[str]) -> Path:
    """Return the safetensors file that `weights` names."""
    file = Path(weights)
    if not weights or (file.suffix == "" and not file.exists()):
        hint = did_you_mean(weights, tags)
        raise ConfigError(f"{name}: expected open_clip:ARCHITECTURE:PRETRAINED, with a safetensors file or a tag of open_clip.{hint}")
    if file.suffix != ".safetensors":
        raise CheckpointError(f"{weights}: expected a safetensors file; pickled weights are not loaded, convert them first")
    if not file.is_file():
        raise CheckpointError(f"{weights}: there is no such file")
    return file


def _published(name: str, facts: dict[str, Any], revision: str | None) -> Path:
    """Return the downloaded safetensors of a tag of open_clip, whose own loader would fall back to pickled weights."""
    repository, file = os.path.split(facts.get("hf_hub") or "")
    safe = str(Path(file).with_suffix(".safetensors")) if file else "open_clip_model.safetensors"
    if not repository:
        raise CheckpointError(f"{name}: published as pickled weights alone, which are not loaded; choose another tag or convert them")
    try:
        return Path(hf_hub_download(repository, safe, revision=revision))
    except OSError as error:
        raise CheckpointError(f"{name}: {repository} gives no {safe} ({error})") from error
