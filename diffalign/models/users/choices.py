"""A user's evidence: for each prompt, the picture that the user preferred and the one it was preferred to."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.pictures import decode_image, upright
from diffalign.data.records import Record
from diffalign.data.transforms import orient

Picture = Image.Image | bytes | str | Path  # drawn, encoded, or a file's name


@dataclass(frozen=True, slots=True)
class Choice:
    """One preference of a user; the pictures are upright RGB."""

    prompt: str
    preferred: Image.Image
    dispreferred: Image.Image


def read_choices(pairs: Iterable[Choice | Record | tuple[str, Picture, Picture]]) -> list[Choice]:
    """Return the choices in `pairs`, in their order: (prompt, preferred, dispreferred) each, a Choice, or a labelled pair of a dataset.

    A record is read as its label says, whatever order its candidates are in. Pairs are numbered from 0 in messages. Raises RecordError
    for an image that does not decode, and for a record that is no labelled pair of images or whose label is a tie; ConfigError for
    anything else that is no pair, and where there are none.
    """
    choices = [_choice(pair, number) for number, pair in enumerate(pairs)]
    if not choices:
        raise ConfigError("no pairs of this user; expected at least one (prompt, preferred image, dispreferred image)")
    return choices


def _choice(pair: Any, number: int) -> Choice:
    if isinstance(pair, Choice):
        return pair
    if isinstance(pair, Record):
        return _labelled(pair)
    if not isinstance(pair, (tuple, list)) or len(pair) != 3 or not isinstance(pair[0], str):
        shape = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, (tuple, list)) else type(pair).__name__
        raise ConfigError(f"pair {number}: found {shape}; expected (prompt, preferred image, dispreferred image), a Choice or a Record")
    prompt, preferred, dispreferred = pair
    return Choice(prompt, _opened(preferred, f"pair {number}, preferred"), _opened(dispreferred, f"pair {number}, dispreferred"))


def _labelled(record: Record) -> Choice:
    if record.prob == 0.5:
        raise RecordError(f"{record.source}: the label is a tie; expected a pair of which one image is preferred")
    (pair,) = orient(record)
    swapped = pair.candidates[0] is not record.candidates[0]
    images = []
    for place, candidate in enumerate(pair.candidates):
        if candidate.image is None:
            raise RecordError(f"{record.source}: the candidates are texts; expected two images")
        images.append(decode_image(candidate.image, f"{record.source}, candidate {place ^ swapped}"))
    return Choice(record.prompt, *images)


def _opened(picture: Any, where: str) -> Image.Image:
    """Return the upright RGB image that `picture` holds or names."""
    if isinstance(picture, Image.Image):
        return upright(picture, where)
    if isinstance(picture, bytes):
        return decode_image(picture, where)
    if not isinstance(picture, (str, Path)):
        raise ConfigError(f"{where}: found {type(picture).__name__}; expected an image, an image file's path or its bytes")
    try:
        data = Path(picture).read_bytes()
    except OSError as error:
        raise RecordError(f"{where}: {picture} cannot be read ({error.strerror}); expected an image file") from error
    return decode_image(data, f"{where}: {picture}")


def contradictions(choices: Sequence[Choice]) -> list[tuple[int, int]]:
    """Return the places (i, j), i < j, of choices that prefer the same two pictures for the same prompt both ways, ascending.

    Pictures are the same where their pixels are.
    """
    seen: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    pairs_against = []
    for place, choice in enumerate(choices):
        preferred, dispreferred = _digest(choice.preferred), _digest(choice.dispreferred)
        if preferred != dispreferred:  # or one picture twice would contradict itself
            pairs_against += [(earlier, place) for earlier in seen[choice.prompt, dispreferred, preferred]]
            seen[choice.prompt, preferred, dispreferred].append(place)
    return sorted(pairs_against)


def contents(choices: Sequence[Choice]) -> str:
    """Return a hash of the prompts and pixels of `choices`, in their order."""
    facts = [(choice.prompt, _digest(choice.preferred), _digest(choice.dispreferred)) for choice in choices]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()
