"""A text about a user becomes the mean of its words, whatever it is padded with."""

from __future__ import annotations

import logging

import pytest
import torch

from diffalign.models.backbones.table import load_backbone
from diffalign.models.users.attach import _words, read_texts
from tests.micro_models import write_micro


@pytest.fixture(scope="module", params=["sd", "sdxl", "sd3", "flux", "pixart"])
def backbone(request, tmp_path_factory):
    return load_backbone(str(write_micro(request.param, tmp_path_factory.mktemp("model") / request.param)), torch.device("cpu"))


def test_a_text_is_the_mean_of_its_words_alone(backbone):
    texts = ["red", "likes red stars"]
    words = backbone.encode_prompt(texts)["prompt_embeds"]
    mask = _words(backbone.pipeline(whole=False), texts, words.shape[1])
    assert mask.shape == words.shape[:2]
    assert mask[0].sum() < mask[1].sum() < words.shape[1]
    found = read_texts(backbone, texts)
    for row in range(2):
        torch.testing.assert_close(found[row], words[row][mask[row].bool()].mean(dim=0))


def test_the_mask_is_the_one_that_the_family_has(backbone):
    condition = backbone.encode_prompt(["red", "likes red stars"])
    known = condition.get("prompt_attention_mask")
    found = _words(backbone.pipeline(whole=False), ["red", "likes red stars"], condition["prompt_embeds"].shape[1])
    assert found.any(dim=1).all()
    assert known is None or torch.equal(found.to(known), known)


def test_a_text_that_is_cut_is_said(backbone, caplog):
    with caplog.at_level(logging.WARNING):
        read_texts(backbone, ["red"])
        assert caplog.text == ""
        read_texts(backbone, ["red", 600 * "red "])
    assert "1 of 2 texts about users are longer than the" in caplog.text
