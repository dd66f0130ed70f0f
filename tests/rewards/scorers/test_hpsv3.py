"""HPSv3 on a small random Qwen2-VL, with weights in the names of the release, against its layers one after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.rewards.table import load_scorer
from tests.models.users.vlm_models import WIDTH, write_qwen
from tests.rewards.models import pictures

RELEASED = {"model.visual.": "visual.", "model.language_model.": "model."}  # names of transformers, and of the release


def write_weights(folder, network):
    """Write the network's weights, a row of the vocabulary more and a head, as the release has them."""
    torch.manual_seed(1)
    weights = {}
    for key, value in network.state_dict().items():
        old = next((old for old in RELEASED if key.startswith(old)), "")
        weights[RELEASED.get(old, "") + key.removeprefix(old)] = value.contiguous()
    weights["model.embed_tokens.weight"] = torch.cat([weights["model.embed_tokens.weight"], torch.randn(1, WIDTH)])
    for place, shape in ((0, (1024, WIDTH)), (3, (16, 1024)), (5, (2, 16))):
        weights |= {f"rm_head.{place}.weight": torch.randn(shape) / shape[1] ** 0.5, f"rm_head.{place}.bias": torch.randn(shape[0])}
    save_file(weights, folder / "HPSv3.safetensors")
    return weights


@torch.no_grad()
def test_hpsv3_is_the_first_number_of_a_head_on_the_state_at_the_reward_token(tmp_path):
    folder = write_qwen(tmp_path / "qwen")
    network, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    weights = write_weights(tmp_path, network)
    (tmp_path / "words.txt").write_text("Prompt {text_prompt} <|Reward|> User")
    spec = {"model": str(tmp_path), "processor": str(folder), "instruction": str(tmp_path / "words.txt"), "dtype": "fp32"}
    scores = load_scorer({"hpsv3": spec})([pictures()[0]] * 2, ["red", "red star"])
    processor.tokenizer.add_tokens(["<|Reward|>"])
    language = network.model.language_model
    language.embed_tokens = torch.nn.Embedding.from_pretrained(weights["model.embed_tokens.weight"])
    expected = []
    for image, prompt in zip([pictures()[0]] * 2, ["red", "red star"], strict=True):
        seen = "<|vision_start|><|image_pad|><|vision_end|>"
        text = f"<|im_start|>user\n{seen}Prompt {prompt} <|Reward|> User<|im_end|>\n<|im_start|>assistant\n"
        edge = 256 * (4 * 2) ** 2  # 256 patches of 2 by 2 patches of 4 pixels
        made = processor(text=[text], images=[[image]], return_tensors="pt", size={"shortest_edge": edge, "longest_edge": edge})
        ids = made["input_ids"][0]
        embeds = language.embed_tokens(ids)
        assert 240 <= int((ids == 4).sum()) <= 280  # as near as whole patches of its shape come
        embeds[ids == 4] = network.model.visual(made["pixel_values"], grid_thw=made["image_grid_thw"]).pooler_output
        places = torch.arange(len(ids))[None, None].repeat(3, 1, 1)
        states = language(inputs_embeds=embeds[None], position_ids=places).last_hidden_state[0].double().numpy()
        state = states[ids.tolist().index(processor.tokenizer.convert_tokens_to_ids("<|Reward|>"))]
        for place in (0, 3, 5):
            state = weights[f"rm_head.{place}.weight"].double().numpy() @ state + weights[f"rm_head.{place}.bias"].double().numpy()
            state = np.maximum(state, 0.0) if place < 5 else state
        expected.append(state[0])
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.ptp(scores) > 1e-3


def test_another_instruction_and_other_weights_are_refused(tmp_path):
    words = tmp_path / "words.txt"
    for text in ("{prompt}", "<|Reward|>", "{prompt} <|Reward|> <|Reward|>"):
        words.write_text(text)
        with pytest.raises(ConfigError, match="is no instruction"):
            load_scorer({"hpsv3": {"instruction": str(words)}})
    with pytest.raises(ConfigError, match="needs `instruction`"):
        load_scorer("hpsv3")
    words.write_text("{prompt} <|Reward|>")
    folder = write_qwen(tmp_path / "qwen")
    network = AutoModelForImageTextToText.from_pretrained(folder)
    weights = write_weights(tmp_path, network)
    for name, broken in (("head", weights | {"rm_head.3.weight": torch.zeros(1)}), ("layer", {"model.norm.weight": None} | weights)):
        kept = {key: value for key, value in broken.items() if name != "layer" or key != "model.norm.weight"}
        save_file(kept, tmp_path / "HPSv3.safetensors")
        with pytest.raises(CheckpointError, match="not the weights of a"):
            load_scorer({"hpsv3": {"instruction": str(words), "model": str(tmp_path), "processor": str(folder)}})
    assert load_file(tmp_path / "HPSv3.safetensors")
