"""Distances of meaning by a sentence encoder."""

from __future__ import annotations

import pytest
import torch

from diffalign.core.errors import CheckpointError
from diffalign.infer.text.meaning import SentenceDistance
from tests.models.text import models

TEXTS = ["a red circle", "Given a word, write another word that has the same meaning", "the sum of 5"]


@pytest.fixture(scope="module")
def distance(tmp_path_factory):
    folder = models.folder(tmp_path_factory.mktemp("encoder"), models.llama(), models.tokenizer())
    return SentenceDistance.from_pretrained(str(folder))


def test_an_embedding_is_the_mean_state_of_a_text_at_length_one_whatever_the_batch(distance):
    together = distance.embed(TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        ids = torch.tensor([distance.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = distance.model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-5)


def test_a_text_has_no_distance_from_itself_and_some_from_another(distance):
    same, other = distance([TEXTS[0], TEXTS[0]], [TEXTS[0], TEXTS[1]])
    assert same == pytest.approx(0.0, abs=1e-6)
    assert 0.0 < other <= 1.0


def test_a_distance_is_one_minus_the_cosine_and_not_below_zero(distance, monkeypatch):
    vectors = {"a": [1.0, 0.0], "b": [0.6, 0.8], "c": [-1.0, 0.0]}
    monkeypatch.setattr(distance, "embed", lambda texts: torch.tensor([vectors[text] for text in texts]))
    assert distance(["a", "a", "a"], ["a", "b", "c"]) == pytest.approx([0.0, 0.4, 1.0])


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not load as a sentence encoder"):
        SentenceDistance.from_pretrained(str(tmp_path))
