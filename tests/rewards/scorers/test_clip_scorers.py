"""PickScore, CLIPScore and the aesthetic predictor, by small CLIPs in the real classes, against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffalign.core.errors import CheckpointError
from diffalign.rewards.scorers.frame import Frame
from diffalign.rewards.table import load_scorer
from tests.rewards.models import SIDE, cropped, pictures, spelt, write_clip

PROMPTS = ["a star", "ring", "a very long prompt"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return str(folder), write_clip(folder)


@torch.no_grad()
def embeds(network, image, prompt):
    """Return the unit embeddings of one image and one prompt by the network's own parts."""
    seen = network.visual_projection(network.vision_model(pixel_values=cropped(image)[None]).pooler_output)[0].double()
    states = network.text_model(input_ids=torch.tensor([spelt(prompt)])).last_hidden_state
    read = network.text_projection(states[:, -1])[0].double()  # at the end token
    return seen / seen.norm(), read / read.norm()


def cosines(network):
    return np.array([float(torch.dot(*embeds(network, *pair))) for pair in zip(pictures(), PROMPTS, strict=True)])


def test_pickscore_is_the_cosine_times_the_models_own_scale(clip):
    folder, network = clip
    scorer = load_scorer({"pickscore": {"model": folder}})
    np.testing.assert_allclose(scorer(pictures(), PROMPTS), math.exp(1.7) * cosines(network), atol=1e-5)
    assert (scorer.name, scorer.max_tokens) == ("pickscore", 8)


def test_a_clip_that_gives_its_features_as_tensors_scores_the_same(clip, monkeypatch):
    scorer = load_scorer({"pickscore": {"model": clip[0]}})
    expected = scorer(pictures(), PROMPTS)
    for name in ("get_image_features", "get_text_features"):  # as those of transformers 4 do
        now = getattr(CLIPModel, name)
        monkeypatch.setattr(CLIPModel, name, lambda self, now=now, **given: now(self, **given).pooler_output)
    np.testing.assert_array_equal(scorer(pictures(), PROMPTS), expected)


def test_clipscore_is_two_and_a_half_cosines_and_never_negative(clip):
    folder, network = clip
    expected = cosines(network)
    assert expected.min() < 0 < expected.max()
    found = load_scorer({"clipscore": {"model": folder}})(pictures(), PROMPTS)
    np.testing.assert_allclose(found, 2.5 * np.maximum(expected, 0.0), atol=1e-5)


def test_clipscore_reads_the_prefix_before_every_prompt(clip):
    folder, _ = clip
    found = load_scorer({"clipscore": {"model": folder, "prefix": "my ", "weight": 100.0}})(pictures(), ["a", "b", "c"])
    plain = load_scorer({"clipscore": {"model": folder, "weight": 100.0}})(pictures(), ["my a", "my b", "my c"])
    np.testing.assert_array_equal(found, plain)


def test_an_image_scores_the_same_alone_as_beside_others(clip):
    scorer = load_scorer({"pickscore": {"model": clip[0]}})
    alone = [scorer([image], [prompt])[0] for image, prompt in zip(pictures(), PROMPTS, strict=True)]
    np.testing.assert_allclose(scorer(pictures(), PROMPTS), alone, atol=1e-5)
    assert scorer([], []).shape == (0,)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_aesthetic_predictor_is_five_linear_layers_on_the_unit_embedding(clip, tmp_path, suffix):
    folder, network = clip
    torch.manual_seed(1)
    sizes, names = [12, 1024, 128, 64, 16, 1], [0, 2, 4, 6, 7]  # the file counts its dropouts
    weights = {}
    for name, fan_in, fan_out in zip(names, sizes[:-1], sizes[1:], strict=True):
        weights[f"layers.{name}.weight"], weights[f"layers.{name}.bias"] = torch.randn(fan_out, fan_in) / fan_in**0.5, torch.randn(fan_out)
    head = tmp_path / f"head{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(weights, head)
    expected = []
    for image in pictures():
        value = embeds(network, image, "a")[0]
        for name in names:
            value = weights[f"layers.{name}.weight"].double() @ value + weights[f"layers.{name}.bias"].double()
        expected.append(float(value))
    found = load_scorer({"aesthetic": {"model": folder, "head": str(head)}})(pictures(), ["", "", ""])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_frame_is_that_of_the_stock_image_processor():
    stock = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    for image in [*pictures(), Image.new("RGB", (16, 16), "red"), pictures()[0].resize((17, 16)), pictures()[0].convert("L")]:
        expected = torch.as_tensor(stock(images=[image], return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(Frame(SIDE, "floor").pixels([image]), expected.float(), atol=1e-6, rtol=0)


def test_the_path_with_gradients_gives_nearly_the_same_score(clip):
    scorer = load_scorer({"pickscore": {"model": clip[0]}})
    image = pictures()[0]
    tensor = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255.0).requires_grad_()
    found = scorer.tensors(tensor, PROMPTS[:1])
    np.testing.assert_allclose(found.item(), scorer([image], PROMPTS[:1])[0], atol=1e-2)
    found.sum().backward()
    assert tensor.grad is not None
    assert tensor.grad[..., 5:15, 15:30].abs().min() > 0
    assert tensor.grad[..., :5].abs().max() == 0  # cropped away


def test_weights_that_are_missing_or_hold_code_are_refused(clip, tmp_path):
    with pytest.raises(CheckpointError, match="no CLIP"):
        load_scorer({"pickscore": {"model": str(tmp_path / "nothing")}})
    torch.save({"layers.0.weight": np.random.default_rng}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match="no weights can be read"):
        load_scorer({"aesthetic": {"model": clip[0], "head": str(tmp_path / "head.pth")}})
    torch.save({"layers.0.weight": torch.zeros(1024, 12)}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"not the weights of a Sequential: Missing key"):
        load_scorer({"aesthetic": {"model": clip[0], "head": str(tmp_path / "part.pth")}})
