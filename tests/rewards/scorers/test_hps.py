"""HPSv2 by a small architecture of open_clip, against the formula written out; padding, not cropping."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as tv

from diffalign.core.errors import CheckpointError
from diffalign.rewards.scorers.frame import Frame
from diffalign.rewards.table import load_scorer
from tests.rewards.models import MEAN, SIDE, STD, pictures

ARCHITECTURE = "diffalign-hps"
PROMPTS = ["a star", "a ring at the left", "two"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    tower = {"width": 16, "layers": 1}
    vision = tower | {"image_size": SIDE, "patch_size": 8, "head_width": 8}
    text = tower | {"context_length": 77, "vocab_size": 49408, "heads": 2}
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / f"{ARCHITECTURE}.json")
    torch.manual_seed(0)
    return open_clip.create_model(ARCHITECTURE).eval()


@torch.no_grad()
def expected(network):
    """Return cosines, each picture with its longest side at S between black bars."""
    found = []
    for image, prompt in zip(pictures(), PROMPTS, strict=True):
        scale = SIDE / max(image.size)
        height, width = round(image.height * scale), round(image.width * scale)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255.0
        square = torch.zeros(3, SIDE, SIDE)
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        small = tv.resize(pixels, [height, width], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
        square[:, top : top + height, left : left + width] = small
        normal = (square - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        seen = network.encode_image(normal[None].float())[0].double()
        read = network.encode_text(open_clip.tokenize([prompt]))[0].double()
        found.append(float(seen @ read / (seen.norm() * read.norm())))
    return found


@pytest.mark.parametrize("file", ["HPS_v2.1_compressed.pt", "port.safetensors"])
def test_hps_is_the_plain_cosine_of_the_whole_picture(network, tmp_path, file):
    state = network.state_dict()
    if file.endswith(".pt"):
        torch.save({"state_dict": state}, tmp_path / file)
    else:
        save_file({f"model.{key}": value for key, value in state.items()}, tmp_path / file)
    where = tmp_path if file.endswith(".pt") else tmp_path / file
    scorer = load_scorer({"hps": {"model": str(where), "architecture": ARCHITECTURE}})
    np.testing.assert_allclose(scorer(pictures(), PROMPTS), expected(network), atol=1e-5)
    assert (scorer.name, scorer.max_tokens) == ("hpsv2.1", 77)


def test_bars_above_and_below_a_wide_picture_are_black_and_nothing_is_cut_off():
    wide = Image.new("RGB", (64, 32), "white")
    wide.paste("red", (0, 0, 8, 32))
    square = Frame(SIDE, "pad", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).pixels([wide])[0]
    assert square[:, :4].abs().max() == 0 == square[:, 12:].abs().max()
    torch.testing.assert_close(square[:, 8, 0], torch.tensor([1.0, 0.0, 0.0]), atol=0.1, rtol=0)


def test_a_file_of_the_other_version_is_not_looked_for_and_another_architecture_is_refused(network, tmp_path):
    torch.save({"state_dict": {"logit_scale": torch.zeros(())}}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(CheckpointError, match="no weights can be read"):
        load_scorer({"hps": {"model": str(tmp_path), "version": "2.0", "architecture": ARCHITECTURE}})
    with pytest.raises(CheckpointError, match="not the weights of a CLIP"):
        load_scorer({"hps": {"model": str(tmp_path), "architecture": ARCHITECTURE}})
