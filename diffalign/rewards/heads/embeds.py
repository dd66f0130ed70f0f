"""What a reward head sees of images and prompts: the embeddings of a CLIP or, without any weights, colours and words. Never trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.cache import fingerprint
from diffalign.data.pictures import decode_image
from diffalign.data.pixels import center_crop
from diffalign.data.records import Record
from diffalign.models.clip import Clip, load_tokenizer
from diffalign.models.features import OPEN_CLIP, ClipFeatures
from diffalign.rewards.heads.hidden import HiddenEmbeds
from diffalign.rewards.heads.settings import PIXELS, reads_texts

BATCH = 32  # prompts at once
SIDE, GRID, WORDS = 64, 8, 64


class Embeds(Protocol):
    """Images and prompts to vectors of fixed widths."""

    fingerprint: str  # by which a head knows them
    contents: str  # changes when a vector would: caches are keyed by it
    image_width: int
    prompt_width: int
    max_tokens: int | None  # of a prompt, the rest being cut; None where it is read whole

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, F) of N >= 1 RGB images, float32, on the CPU, without gradient."""
        ...

    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return (N, D) of N >= 1 prompts, float32, on the CPU, without gradient."""
        ...


def load_embeds(name: str, revision: str | None = None, device: torch.device | str = "cpu") -> Embeds:
    """Return the embeddings `pixels`, those of a CLIP of transformers in a folder or on the hub, or of a folder's language model.

    Raises as `ClipEmbeds` and `HiddenEmbeds` do.
    """
    if name == PIXELS:
        return PixelEmbeds()
    return HiddenEmbeds(name, revision, device) if reads_texts(name) else ClipEmbeds(name, revision, device)


def of_candidates(embeds: Embeds, records: Sequence[Record]) -> Tensor:
    """Return (N, F) of all candidates of records, images or texts, in their order."""
    if isinstance(embeds, HiddenEmbeds):
        return embeds.answers(records)
    return embeds.images([decode_image(c.image or b"", f"{r.source}, candidate {i}") for r in records for i, c in enumerate(r.candidates)])


class PixelEmbeds:
    """For small worlds and tests. F = 256: the mean colour of 8 by 8 cells of the middle square (64 pixels, values in [-1, 1]), and of
    each cell the mean distance of its pixels from the square's border, whose median colour stands for the background. D = 64: words,
    each counted in one of 64 places with a sign, by a hash (feature hashing, 0902.2206).
    """

    image_width, prompt_width = 4 * GRID**2, WORDS
    max_tokens: int | None = None
    fingerprint = contents = fingerprint({"embeds": PIXELS, "version": 1})

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, 256)."""
        pixels = torch.stack([center_crop(image, SIDE) for image in images])
        border = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2)
        apart = (pixels - border.median(dim=2).values[:, :, None, None]).abs().mean(dim=1, keepdim=True)
        return F.adaptive_avg_pool2d(torch.cat([pixels, apart], dim=1), GRID).flatten(1)

    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return (N, 64)."""
        counts = torch.zeros(len(prompts), WORDS)
        for row, prompt in enumerate(prompts):
            for word in prompt.lower().split():
                digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
                counts[row, digest[0] % WORDS] += 1.0 if digest[1] % 2 else -1.0
        return counts


class ClipEmbeds:
    """A CLIP's embeddings of both halves, of length sqrt(F) and sqrt(D), so that their entries are of about unit scale.

    Raises ConfigError for a name that is none of transformers' CLIPs, CheckpointError for one that is missing or incomplete.
    """

    def __init__(self, name: str, revision: str | None = None, device: torch.device | str = "cpu") -> None:
        if name.startswith(OPEN_CLIP):
            raise ConfigError(f"{name}: reward models read a CLIP of transformers, with its text half; give its folder or hub id")
        self._features = ClipFeatures(name, revision, device)
        if not isinstance(self._features.network, CLIPModel):
            raise CheckpointError(f"{name}: the image half of a CLIP alone; a reward model reads its prompts too, give a whole one")
        self._clip = Clip(self._features.network, torch.device(device))
        self._tokenizer = load_tokenizer(name, revision)
        self.max_tokens: int | None = self._clip.max_tokens
        self.fingerprint, self.contents = self._features.source, self._features.fingerprint  # hashes of both halves
        self.image_width, self.prompt_width = self._features.width, int(self._clip.network.config.projection_dim)

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, F)."""
        return self._features(images)

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return (N, D); what is longer than `max_tokens` is cut."""
        parts = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        embeds = torch.cat([self._clip.texts(self._tokenizer, part, padding="max_length").float().cpu() for part in parts])
        return F.normalize(embeds, dim=1) * self.prompt_width**0.5
