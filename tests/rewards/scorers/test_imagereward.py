"""ImageReward by a small model in the authors' file, against their formulas written out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffalign.core.errors import CheckpointError
from diffalign.rewards.table import load_scorer
from tests.rewards.models import MEAN, STD, pictures

SIDE, PATCH, WIDTH, HIDDEN, HEADS = 16, 8, 192, 128, 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "star", "ring"]
PROMPTS = ["a red star", "a ring", " ".join(40 * ["red"])]
IDS = [[2, 4, 5, 6, 3], [2, 4, 7, 3], [2, *33 * [5], 3]]  # 35 at most


def linear(weights, name, fan_in, fan_out):
    weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.randn(fan_out, fan_in) / fan_in**0.5, torch.randn(fan_out) * 0.1


def norm(weights, name, width):
    weights[f"{name}.weight"], weights[f"{name}.bias"] = 1.0 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)


def write(folder):
    """Return random weights by the authors' names, written to their file, and write a tokenizer beside it."""
    torch.manual_seed(0)
    w, seen, read = {}, "blip.visual_encoder.", "blip.text_encoder."
    w[f"{seen}cls_token"], w[f"{seen}pos_embed"] = torch.randn(1, 1, WIDTH), torch.randn(1, 5, WIDTH)
    w[f"{seen}patch_embed.proj.weight"], w[f"{seen}patch_embed.proj.bias"] = torch.randn(WIDTH, 3, PATCH, PATCH) / 14, torch.randn(WIDTH)
    for block in (f"{seen}blocks.{index}" for index in range(2)):
        for name, sizes in {
            "attn.qkv": (WIDTH, 3 * WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (WIDTH, 48),
            "mlp.fc2": (48, WIDTH),
        }.items():
            linear(w, f"{block}.{name}", *sizes)
        norm(w, f"{block}.norm1", WIDTH)
        norm(w, f"{block}.norm2", WIDTH)
    norm(w, f"{seen}norm", WIDTH)
    w[f"{read}embeddings.position_ids"] = torch.arange(64)[None]
    w[f"{read}embeddings.word_embeddings.weight"] = torch.randn(len(WORDS) + 2, HIDDEN)
    w[f"{read}embeddings.position_embeddings.weight"] = torch.randn(64, HIDDEN)
    norm(w, f"{read}embeddings.LayerNorm", HIDDEN)
    for layer in (f"{read}encoder.layer.{index}" for index in range(2)):
        for part, width in (("attention", HIDDEN), ("crossattention", WIDTH)):
            linear(w, f"{layer}.{part}.self.query", HIDDEN, HIDDEN)
            linear(w, f"{layer}.{part}.self.key", width, HIDDEN)
            linear(w, f"{layer}.{part}.self.value", width, HIDDEN)
            linear(w, f"{layer}.{part}.output.dense", HIDDEN, HIDDEN)
            norm(w, f"{layer}.{part}.output.LayerNorm", HIDDEN)
        linear(w, f"{layer}.intermediate.dense", HIDDEN, 40)
        linear(w, f"{layer}.output.dense", 40, HIDDEN)
        norm(w, f"{layer}.output.LayerNorm", HIDDEN)
    for name, sizes in zip((0, 2, 4, 6, 7), ((HIDDEN, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)), strict=True):
        linear(w, f"mlp.layers.{name}", *sizes)
    linear(w, "blip.vision_proj", WIDTH, 8)  # in the file, and not used
    torch.save(w, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    return w


class ByHand:
    """The authors' forward pass of one image and one prompt, in float64."""

    def __init__(self, weights):
        self.w = {key: value.double() if value.is_floating_point() else value for key, value in weights.items()}

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attend(self, q, k, v):
        parts = [slice(start, start + HEADS) for start in range(0, q.shape[-1], HEADS)]
        return torch.cat([(q[:, p] @ k[:, p].T / HEADS**0.5).softmax(-1) @ v[:, p] for p in parts], dim=-1)

    def vision(self, pixels):
        seen = "blip.visual_encoder"
        corners = [(y, x) for y in (0, PATCH) for x in (0, PATCH)]
        patches = torch.stack([pixels[:, y : y + PATCH, x : x + PATCH].reshape(-1) for y, x in corners])
        embedded = patches @ self.w[f"{seen}.patch_embed.proj.weight"].reshape(WIDTH, -1).T + self.w[f"{seen}.patch_embed.proj.bias"]
        x = torch.cat([self.w[f"{seen}.cls_token"][0], embedded]) + self.w[f"{seen}.pos_embed"][0]
        for block in (f"{seen}.blocks.{index}" for index in range(2)):
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
            x = x + self.linear(f"{block}.attn.proj", self.attend(q, k, v))
            x = x + self.linear(f"{block}.mlp.fc2", F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6))))
        return self.norm(f"{seen}.norm", x, 1e-6)

    def score(self, pixels, ids):
        image, read = self.vision(pixels.double()), "blip.text_encoder"
        x = self.w[f"{read}.embeddings.word_embeddings.weight"][ids] + self.w[f"{read}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{read}.embeddings.LayerNorm", x, 1e-12)
        for layer in (f"{read}.encoder.layer.{index}" for index in range(2)):
            for part, other in (("attention", None), ("crossattention", image)):
                name, states = f"{layer}.{part}", x if other is None else other
                q, k, v = (self.linear(f"{name}.self.{n}", s) for n, s in (("query", x), ("key", states), ("value", states)))
                x = self.norm(f"{name}.output.LayerNorm", x + self.linear(f"{name}.output.dense", self.attend(q, k, v)), 1e-12)
            grown = F.gelu(self.linear(f"{layer}.intermediate.dense", x))
            x = self.norm(f"{layer}.output.LayerNorm", x + self.linear(f"{layer}.output.dense", grown), 1e-12)
        for index in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{index}", x)
        return (float(x[0, 0]) - 0.16717362830052426) / 1.0333394966054072


def cropped(image):
    """Return (3, S, S): shortest side to S, the middle of the rest as torchvision rounds it, normalised."""
    scale = SIDE / min(image.size)
    small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((small.width - SIDE) / 2), round((small.height - SIDE) / 2)
    kept = np.asarray(small)[top : top + SIDE, left : left + SIDE] / 255.0
    return torch.from_numpy(((kept - MEAN) / STD).transpose(2, 0, 1))


def test_imagereward_is_the_authors_formula(tmp_path):
    by_hand = ByHand(write(tmp_path))
    scorer = load_scorer({"imagereward": {"model": str(tmp_path), "tokenizer": str(tmp_path)}})
    images = [*pictures()[:2], pictures()[0].resize((37, 16))]  # 21 columns too many: an odd remainder
    expected = [by_hand.score(cropped(image), ids) for image, ids in zip(images, IDS, strict=True)]
    np.testing.assert_allclose(scorer(images, PROMPTS), expected, atol=1e-5)
    assert max(expected) - min(expected) > 0.1
    assert scorer.max_tokens == 35


def test_the_weights_of_another_model_and_a_part_of_them_are_refused(tmp_path):
    weights = write(tmp_path)
    del weights["blip.visual_encoder.blocks.1.attn.proj.bias"]
    torch.save(weights, tmp_path / "part.pt")
    with pytest.raises(
        CheckpointError, match=r"not the weights of a BlipVisionModel: Missing key\(s\).*layers\.1\.self_attn\.projection\.bias"
    ):
        load_scorer({"imagereward": {"model": str(tmp_path / "part.pt"), "tokenizer": str(tmp_path)}})
    torch.save({"logit_scale": torch.zeros(())}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"not the weights of ImageReward \('patch_embed\.proj\.weight' is missing\)"):
        load_scorer({"imagereward": {"model": str(tmp_path / "other.pt"), "tokenizer": str(tmp_path)}})
