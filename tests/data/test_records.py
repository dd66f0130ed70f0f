"""Records refuse what cannot be used, and images survive encoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import RecordError
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.records import Candidate, Message, Record, check_images
from tests.data.test_pictures import encoded, noise


def text_pair(**fields) -> Record:
    """Return a valid text pair, with `fields` replaced."""
    plain = {"id": "r:0", "prompt": "say hi", "candidates": (Candidate(text="hi"), Candidate(text="no")), "source": "votes.csv row 3"}
    return Record(**{**plain, **fields})


def test_a_valid_record_comes_back_from_check_as_it_is():
    record = text_pair(prob=0.25, user="u", messages=(Message("user", "say hi"),))
    assert record.check() is record
    assert record.kind == "text"
    assert Record("i", "p", (Candidate(image=b"x"),)).kind == "image"
    assert Record("i", "p", ()).check().kind == "prompt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": (), "prob": 1.0}, "no candidates"),
        ({"candidates": (Candidate(text="a"), Candidate(image=b"b"))}, "every candidate must be an image, or every one a text"),
        ({"candidates": (Candidate(text="a", image=b"b"),)}, "every candidate must be an image"),
        ({"candidates": (Candidate(),)}, "every candidate must be an image"),
        ({"prob": 1.5}, r"the preference is 1.5; expected a number in \[0, 1\]"),
        ({"prob": -1e-9}, "the preference is -1e-09"),
        ({"prob": math.nan}, "the preference is nan"),
        ({"candidates": (Candidate(text="a", scores={"clip": math.inf}),)}, "score `clip` is inf; expected a finite number"),
        ({"candidates": (Candidate(text="a"), Candidate(text="b", rank=math.nan))}, "the rank of candidate 1 is nan"),
        ({"prompt": "half \ud83d"}, "the prompt holds half of a surrogate pair"),
        ({"candidates": (Candidate(text="a"), Candidate(text="\udc00"))}, "candidate 1 holds half of a surrogate pair"),
        ({"messages": (Message("user", "\ud800"),)}, "a message holds half of a surrogate pair"),
    ],
)
def test_an_unusable_record_is_refused_with_its_source_and_reason(fields, message):
    with pytest.raises(RecordError, match=message) as caught:
        text_pair(**fields).check()
    assert str(caught.value).startswith("votes.csv row 3: ")


def test_an_image_survives_encoding_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode_image(encode_image(Image.fromarray(pixels)), "x")), pixels)


def test_a_truncated_image_is_refused_and_named():
    whole = encoded(noise(32, 32), "JPEG")
    record = Record("r", "p", (Candidate(image=whole), Candidate(image=whole[: len(whole) // 2])), source="a.parquet row 7")
    with pytest.raises(RecordError, match=r"a\.parquet row 7, candidate 1: the image does not decode: a JPEG file that is cut off"):
        check_images(record)
