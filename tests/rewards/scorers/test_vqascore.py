"""VQAScore by small vision-language models of two kinds: the chance of one token, asked in the model's own chat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.rewards.table import load_scorer
from tests.models.users.vlm_models import write_llava, write_qwen
from tests.rewards.models import pictures

SEEN = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "llava": "<image>\n"}
RED, STAR = "red", "star"


@pytest.mark.parametrize(("kind", "write"), [("qwen", write_qwen), ("llava", write_llava)])
@torch.no_grad()
def test_vqascore_is_the_chance_of_the_answer_behind_the_question(tmp_path, kind, write):
    folder = write(tmp_path / kind)
    network, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    answer = processor.tokenizer.get_vocab()[STAR]
    expected = []
    for image, prompt in zip(pictures(), [RED, "Pair", "User"], strict=True):
        text = f"<|im_start|>user\n{SEEN[kind]}Prompt {prompt} 1<|im_end|>\n<|im_start|>assistant\n"
        logits = network(**processor(text=[text], images=[[image]], return_tensors="pt")).logits[0, -1].double().numpy()
        expected.append(np.exp(logits[answer]) / np.exp(logits).sum())
    scorer = load_scorer({"vqascore": {"model": str(folder), "question": "Prompt {} 1", "answer": STAR}})
    np.testing.assert_allclose(scorer(pictures(), [RED, "Pair", "User"]), expected, atol=1e-6)
    assert max(expected) - min(expected) > 1e-3
    token = processor.image_token
    np.testing.assert_allclose(scorer(pictures()[:1], [f"{token}{RED}"]), expected[:1], atol=1e-6)  # no prompt's to write


def test_a_question_without_a_prompt_and_a_model_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"expected \{\} where the prompt stands"):
        load_scorer({"vqascore": {"model": str(tmp_path), "question": "Is it good?"}})
    with pytest.raises(CheckpointError, match="no vision-language model can be loaded"):
        load_scorer({"vqascore": {"model": str(tmp_path / "nothing")}})
    with pytest.raises(ConfigError, match="needs `model`"):
        load_scorer("vqascore")
