"""MPS by a small model under the names of its port, against the authors' formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffalign.core.errors import CheckpointError
from diffalign.rewards.table import load_scorer
from tests.rewards.models import END, LETTERS, START, cropped, pictures, spelt, write_clip

WIDTH, HEAD, HEADS, GROWN = 12, 4, 2, 10
PROMPTS = ["a star", "ring", "a very long prompt"]
CONDITION = [START, *(LETTERS.index(letter) for letter in ("l", "i", "g", "h", "t</w>")), END, END]  # the comma is unknown


def write(folder):
    """Return the CLIP and the cross layers' weights, written to one file by the port's names."""
    network = write_clip(folder)
    torch.manual_seed(3)
    weights = {}
    for layer in range(2):
        reads, mixes = f"mps.cross_model.layers.{layer}.0.fn", f"mps.cross_model.layers.{layer}.1.fn"
        shapes = {"to_q": (HEADS * HEAD, WIDTH), "to_kv": (2 * HEAD, WIDTH), "to_out": (WIDTH, HEADS * HEAD)}
        shapes |= {"ff.0": (2 * GROWN, WIDTH), "ff.2": (WIDTH, GROWN)}
        more = {
            "fused_attn_ff_proj": (HEADS * HEAD + 2 * HEAD + 2 * GROWN, WIDTH),
            "attn_out": (WIDTH, HEADS * HEAD),
            "ff_out.1": (WIDTH, GROWN),
        }
        for block, sizes in ((reads, shapes), (mixes, more)):
            weights |= {f"{block}.{name}.weight": torch.randn(size) / 3 for name, size in sizes.items()}
            weights |= {f"{block}.norm.weight": 1.0 + 0.1 * torch.randn(WIDTH), f"{block}.norm.bias": torch.zeros(WIDTH)}
        weights[f"{mixes}.rotary_emb.inv_freq"] = torch.ones(HEAD // 2)
    state = {f"mps.model.{key}": value.clone() for key, value in network.state_dict().items()}
    save_file(weights | state, folder / "model.safetensors")
    return network, {key.removeprefix("mps.cross_model.layers."): value.double().numpy() for key, value in weights.items()}


def normed(w, name, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.norm.weight"]


def gated(x):
    value, gate = x[:, :GROWN], x[:, GROWN:]
    return value * gate / (1 + np.exp(-gate))


def attend(q, k, v, open_ones):
    """Return one head's reading; only `open_ones` are read."""
    found = []
    for row in q:
        chances = np.array([math.exp(row @ key / math.sqrt(HEAD)) if is_open else 0.0 for key, is_open in zip(k, open_ones, strict=True)])
        found.append(chances @ v / chances.sum())
    return np.array(found)


def turned(x):
    """Return rows turned in the planes (0, 2) and (1, 3) by position times 1 and 1/100."""
    rows = []
    for position, (a, b, c, d) in enumerate(x):
        one, other = position, position / 100
        rows.append(
            [
                a * math.cos(one) - c * math.sin(one),
                b * math.cos(other) - d * math.sin(other),
                c * math.cos(one) + a * math.sin(one),
                d * math.cos(other) + b * math.sin(other),
            ]
        )
    return np.array(rows)


def crossed(w, x, words, open_words):
    """Return image tokens after both layers."""
    split = HEADS * HEAD
    for layer in range(2):
        name = f"{layer}.0.fn"
        normal = normed(w, name, x)
        q, kv = normal @ w[f"{name}.to_q.weight"].T, words @ w[f"{name}.to_kv.weight"].T
        read = [attend(q[:, h : h + HEAD], kv[:, :HEAD], kv[:, HEAD:], open_words) for h in range(0, split, HEAD)]
        x = x + np.hstack(read) @ w[f"{name}.to_out.weight"].T + gated(normal @ w[f"{name}.ff.0.weight"].T) @ w[f"{name}.ff.2.weight"].T
        name = f"{layer}.1.fn"
        q, k, v, wide = np.split(
            normed(w, name, x) @ w[f"{name}.fused_attn_ff_proj.weight"].T, [split, split + HEAD, split + 2 * HEAD], axis=1
        )
        read = [attend(turned(q[:, h : h + HEAD]), turned(k), v, [True] * len(x)) for h in range(0, split, HEAD)]
        x = x + np.hstack(read) @ w[f"{name}.attn_out.weight"].T + gated(wide) @ w[f"{name}.ff_out.1.weight"].T
    return x


@torch.no_grad()
def score(network, w, image, prompt):
    def states(ids):
        return network.text_projection(network.text_model(input_ids=torch.tensor([ids])).last_hidden_state)[0].double().numpy()

    ids = [*spelt(prompt), *8 * [END]][:8]
    words = states(ids)
    tokens = network.visual_projection(network.vision_model(pixel_values=cropped(image)[None]).last_hidden_state)[0].double().numpy()
    near = (words @ states(CONDITION).T).max(axis=1)
    seen, end = crossed(w, tokens, words, near / near.max() > 0.3)[0], words[ids.index(END)]
    return math.exp(1.7) * float(seen @ end / math.sqrt((seen @ seen) * (end @ end))), near / near.max()


def test_mps_is_the_authors_formula_each_prompt_by_itself(tmp_path):
    network, w = write(tmp_path)
    scorer = load_scorer({"mps": {"model": str(tmp_path), "processor": str(tmp_path)}})
    expected = [score(network, w, image, prompt) for image, prompt in zip(pictures(), PROMPTS, strict=True)]
    assert any((near <= 0.3).any() for _, near in expected)  # some words are not read
    np.testing.assert_allclose(scorer(pictures(), PROMPTS), [value for value, _ in expected], atol=1e-5)


def test_other_weights_are_refused(tmp_path):
    write(tmp_path)
    save_file({"model.logit_scale": torch.zeros(())}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not the weights of MPS"):
        load_scorer({"mps": {"model": str(tmp_path / "other.safetensors"), "processor": str(tmp_path)}})
