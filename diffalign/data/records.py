"""The record that every dataset is turned into: a prompt, K candidates with named scores, a soft preference, a user, provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from diffalign.core.errors import RecordError
from diffalign.data.pictures import decode_image, image_size


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to a prompt: an encoded image or a text, never both."""

    image: bytes | None = None  # an encoded file (JPEG, PNG, WebP), not pixels
    text: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)  # by name, higher is better
    rank: float | None = None  # 1 = best; equal ranks are ties; gaps are allowed
    model: str | None = None
    uid: str | None = None
    prompt: str | None = None  # only where the candidates of a record answer different prompts (joint preferences)
    conditioning_image: bytes | None = None  # only where the candidates of a record were drawn to different ones


@dataclass(frozen=True, slots=True)
class Record:
    """One preference. Candidate 0 is the preferred one if `prob` is above one half; readers keep the order of the dataset."""

    id: str
    prompt: str
    candidates: tuple[Candidate, ...]
    prob: float | None = None  # chance in [0, 1] that candidate 0 is preferred to candidate 1; None if only ranked or unlabelled
    user: str | None = None
    source: str = ""  # file or hub id, and row
    messages: tuple[Message, ...] = ()  # the conversation that ends in `prompt`, for chat templates; empty for a plain prompt
    meta: Mapping[str, str] = field(default_factory=dict)
    weight: float | None = None  # factor of the record's loss; set by transforms only, never stored in a table
    offset: float | None = None  # subtracted inside the sigmoid; set by transforms only, never stored in a table
    conditioning_image: bytes | None = None  # an encoded file that a ControlNet reads (edges, depth, a pose), of all candidates

    @property
    def kind(self) -> str:
        """Return what the candidates are, "image" or "text", or "prompt" if there are none."""
        if not self.candidates:
            return "prompt"
        return "text" if self.candidates[0].image is None else "image"

    @property
    def conditioning_images(self) -> tuple[bytes | None, ...]:
        """Return each candidate's conditioning image: its own, else the record's; None where there is neither."""
        return tuple(c.conditioning_image or self.conditioning_image for c in self.candidates)

    def check(self) -> Record:
        """Return the record unchanged. Raises RecordError if a part of it cannot be used."""
        if not self.candidates and self.prob is not None:
            raise RecordError(f"{self.source}: no candidates; expected at least one image or text")
        kinds = {(c.image is not None, c.text is not None) for c in self.candidates}
        if kinds not in (set(), {(True, False)}, {(False, True)}):
            raise RecordError(f"{self.source}: every candidate must be an image, or every one a text")
        conditioned = {image is not None for image in self.conditioning_images}
        if True in conditioned and (False in conditioned or self.kind == "text"):
            raise RecordError(f"{self.source}: expected a conditioning image for every candidate, all of them images, or for none")
        if self.prob is not None and not 0.0 <= self.prob <= 1.0:
            raise RecordError(f"{self.source}: the preference is {self.prob}; expected a number in [0, 1]")
        for name, value in self._numbers():
            if not math.isfinite(value):
                raise RecordError(f"{self.source}: {name} is {value}; expected a finite number")
        for name, value in self._texts():
            if not _is_unicode(value):
                raise RecordError(f"{self.source}: {name} holds half of a surrogate pair; expected whole Unicode characters")
        return self

    def _numbers(self) -> Iterator[tuple[str, float]]:
        for index, candidate in enumerate(self.candidates):
            yield from ((f"score `{name}`", value) for name, value in candidate.scores.items())
            if candidate.rank is not None:
                yield f"the rank of candidate {index}", candidate.rank

    def _texts(self) -> Iterator[tuple[str, str]]:
        yield from (("the id", self.id), ("the prompt", self.prompt))
        yield from (("a message", message.content) for message in self.messages)
        for index, candidate in enumerate(self.candidates):
            yield from ((f"candidate {index}", text) for text in (candidate.text, candidate.prompt) if text is not None)


def _is_unicode(text: str) -> bool:
    """Return whether `text` can be stored as UTF-8, which half a surrogate pair, legal in JSON, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_images(record: Record) -> Record:
    """Return `record` unchanged. Raises RecordError if one of its images does not decode, or a conditioning image is of another shape."""
    for index, candidate in enumerate(record.candidates):
        if candidate.image is not None:
            decode_image(candidate.image, f"{record.source}, candidate {index}")
    for index, image in enumerate(record.conditioning_images):
        if image is not None:
            decode_image(image, conditioning_place(record, index))
            check_shape(record, index)
    return record


def conditioning_place(record: Record, index: int) -> str:
    """Return how messages call the conditioning image of a candidate."""
    return f"{record.source}, conditioning image of candidate {index}"


def check_shape(record: Record, index: int) -> None:
    """Raise RecordError where a conditioning image has another aspect ratio than its picture: the crop would cut them differently.

    A row or a column of pixels more or less, as rounding leaves it, is no other shape.
    """
    image, conditioning = record.candidates[index].image, record.conditioning_images[index]
    if image is None or conditioning is None:
        return
    height, width = image_size(image, f"{record.source}, candidate {index}")
    where = conditioning_place(record, index)
    high, wide = image_size(conditioning, where)
    if abs(wide * height - width * high) > max(wide, high, width, height):
        raise RecordError(f"{where}: {wide}x{high} pixels, and its picture has {width}x{height}; expected the same aspect ratio")
