"""Small random reward models in the files and classes of the real ones, and pictures that tell padding from cropping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

SIDE = 16
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
LETTERS = [f"{letter}{end}" for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
START, END = len(LETTERS), len(LETTERS) + 1


def pictures() -> list[Image.Image]:
    """Return noise in three forms, wide, tall and square, none of the side the models read."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in [(20, 45), (37, 18), (24, 24)]]


def write_clip(folder: Path) -> CLIPModel:
    """Write a CLIP, 12 numbers wide, with its processor and a tokenizer that spells; return it."""
    torch.manual_seed(11)  # cosines of both signs
    vision = CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=8, projection_dim=12)
    text = CLIPTextConfig(
        **TOWER, vocab_size=END + 1, max_position_embeddings=8, bos_token_id=START, eos_token_id=END, pad_token_id=END, projection_dim=12
    )
    network = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)).eval()
    network.logit_scale.data.fill_(1.7)
    network.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    vocabulary = [*LETTERS, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 8} | words))
    return network


def spelt(prompt: str) -> list[int]:
    """Return the ids of a prompt by the tokenizer of `write_clip`: letters between start and end, eight at most."""
    letters = [LETTERS.index(letter) for word in prompt.split() for letter in [*word[:-1], word[-1] + "</w>"]]
    return [START, *letters[:6], END]


def cropped(image: Image.Image) -> torch.Tensor:
    """Return (3, S, S): the shortest side to S, the middle of the rest, normalised."""
    scale = SIDE / min(image.size)
    small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
    kept = np.asarray(small)[top : top + SIDE, left : left + SIDE] / 255.0
    return torch.from_numpy(((kept - MEAN) / STD).transpose(2, 0, 1)).float()
