"""Pictures become the denoiser's pooled latents or a CLIP's embeddings: at the right scale, named by a fingerprint, without pickles."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel
from transformers import CLIPVisionModelWithProjection as CLIPVision

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.pictures import encode_image
from diffalign.data.pixels import Framing, candidate_pixels
from diffalign.data.records import Candidate, Record
from diffalign.models.backbones.table import load_backbone
from diffalign.models.features import ClipFeatures, LatentFeatures, features

SIDE = 16
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ARCHITECTURE = "diffalign-test"


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in [(20, 30), (33, 17), (16, 16)]]


def write_clip(folder, kind=CLIPModel, seed=0):
    """Write a random CLIP, 12 numbers wide; what its vision part says of the width itself is wrong, as in some published ones."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=8, projection_dim=512 if kind is CLIPModel else 12)
    text = CLIPTextConfig(**TOWER, vocab_size=8, max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    config = vision if kind is not CLIPModel else CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    network = kind(config).eval()
    network.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return network


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return str(folder), write_clip(folder)


@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory):
    """The weights, in a safetensors file, of an architecture that open_clip is told of."""
    folder = tmp_path_factory.mktemp("open_clip")
    tower = {"width": 16, "layers": 1}
    vision, text = (
        tower | {"image_size": SIDE, "patch_size": 8, "head_width": 8},
        tower | {"context_length": 8, "vocab_size": 8, "heads": 2},
    )
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / f"{ARCHITECTURE}.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model(ARCHITECTURE).state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def opened(file):
    return ClipFeatures(f"open_clip:{ARCHITECTURE}:{file}")


def unit(embeds):
    """Return the rows at length sqrt(12)."""
    return embeds / embeds.norm(dim=1, keepdim=True) * math.sqrt(12)


def test_latents_are_the_mean_of_each_block_of_the_posteriors_mean(images):
    seen = []

    def encode(pixels, noise):
        seen.append((pixels, noise))
        return torch.cat([pixels, pixels[:, :1]], dim=1)

    find = LatentFeatures(encode, lambda height, width: (4, height, width), SIDE, "f", "v")
    found = find(images)
    ((pixels, noise),) = seen
    record = Record("r", "", tuple(Candidate(image=encode_image(image)) for image in images))
    assert torch.equal(pixels, candidate_pixels(record, Framing(SIDE), torch.Generator())[0])
    assert torch.equal(noise, torch.zeros(3, 4, SIDE, SIDE))
    assert found.shape == (3, find.width) == (3, 4 * 8 * 8)
    assert found.dtype == torch.float32
    # 16 latents a side become 8: each is the mean of two by two; the first row's second block has columns 2 and 3
    torch.testing.assert_close(found[1, 1], pixels[1, 0, 0:2, 2:4].mean())
    torch.testing.assert_close(found[1, 3 * 64 :], found[1, :64])


def test_small_latents_are_left_as_they_are(images):
    find = LatentFeatures(lambda pixels, noise: pixels[:, :2, ::4, ::4], lambda height, width: (2, height // 4, width // 4), SIDE, "f", "v")
    assert find.width == 2 * 4 * 4
    assert find(images).shape == (3, 32)


def test_many_pictures_are_encoded_a_few_at_a_time(images):
    sizes = []

    def encode(pixels, noise):
        sizes.append(len(pixels))
        return pixels

    find = LatentFeatures(encode, lambda height, width: (3, height, width), 4, "f", "v")
    torch.testing.assert_close(find(images * 20)[-3:], find(images))
    assert sizes == [32, 28, 3]


def test_latents_name_the_encoders_or_the_vae_alone_and_the_resolution():
    def find(fingerprint, side, vae="v"):
        return LatentFeatures(lambda pixels, noise: pixels, lambda height, width: (3, height, width), side, fingerprint, vae)

    assert len({find("a", 8).fingerprint, find("b", 8).fingerprint, find("a", 16).fingerprint}) == 3
    assert find("a", 8).fingerprint == find("a", 8, "w").fingerprint
    assert len({find("a", 8).source, find("a", 8, "w").source, find("a", 16).source}) == 3
    assert find("a", 8).source == find("b", 8).source


def test_latents_of_a_real_backbone_tell_pictures_apart_and_carry_no_gradient(micro_sd, images):
    backbone = load_backbone(str(micro_sd), torch.device("cpu"))
    find = features("latents", backbone)
    assert isinstance(find, LatentFeatures)
    found = find(images)
    assert found.shape == (3, find.width)
    assert not found.requires_grad
    assert found.is_inference() is False  # or a trained encoder could not keep it for its gradient
    assert torch.equal(find(images[1:2])[0], find(images[1:2])[0])
    torch.testing.assert_close(find(images[1:2])[0], found[1])
    assert (found[0] - found[1]).abs().max() > 0.01


def test_a_clip_gives_its_image_embeddings_at_length_sqrt_of_the_width(clip, images):
    folder, network = clip
    find = ClipFeatures(folder)
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[0, 1]])
    with torch.no_grad():
        expected = network(input_ids=ids, pixel_values=pixels).image_embeds
    found = find(images)
    assert found.shape == (3, find.width) == (3, 12)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(found, unit(expected))


def test_embeddings_of_an_older_transformers_are_taken_as_they_come(clip, images, monkeypatch):
    folder, _ = clip
    expected = ClipFeatures(folder)(images)
    now = CLIPModel.get_image_features
    monkeypatch.setattr(CLIPModel, "get_image_features", lambda self, pixel_values: now(self, pixel_values).pooler_output)
    assert torch.equal(ClipFeatures(folder)(images), expected)


def test_the_vision_part_alone_is_a_clip(tmp_path, images):
    network = write_clip(tmp_path, CLIPVision)
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = network(pixel_values=pixels).image_embeds
    torch.testing.assert_close(ClipFeatures(str(tmp_path))(images), unit(expected))


def test_a_clip_is_what_any_other_name_means(clip, micro_sd, images):
    backbone = load_backbone(str(micro_sd), torch.device("cpu"))
    assert torch.equal(features(clip[0], backbone)(images), ClipFeatures(clip[0])(images))


def test_a_fingerprint_is_of_the_weights_and_the_preprocessing(clip, tmp_path):
    write_clip(tmp_path / "same")
    write_clip(tmp_path / "other", seed=1)
    write_clip(tmp_path / "darker")
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=[0.0, 0.0, 0.0]).save_pretrained(
        tmp_path / "darker"
    )
    same, *others = (ClipFeatures(str(tmp_path / name)).fingerprint for name in ("same", "other", "darker"))
    assert same == ClipFeatures(clip[0]).fingerprint
    assert len({same, *others}) == 3


def test_a_clip_without_its_projection_is_refused(tmp_path):
    write_clip(tmp_path, CLIPVisionModel)
    with pytest.raises(CheckpointError, match=r"CLIPVisionModelWithProjection .*visual_projection"):
        ClipFeatures(str(tmp_path))


def test_pickled_weights_are_not_loaded(clip, tmp_path):
    write_clip(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}: .*CLIP"):
        ClipFeatures(str(tmp_path))


def test_a_damaged_clip_is_named(tmp_path):
    write_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CheckpointError, match="no CLIP can be loaded from here"):
        ClipFeatures(str(tmp_path))


def test_a_folder_that_is_not_there_and_a_model_that_is_no_clip_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no CLIP can be loaded from here"):
        ClipFeatures(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"type `bert`"):
        ClipFeatures(str(tmp_path))


def test_open_clip_gives_its_image_embeddings_at_length_sqrt_of_the_width(tiny_open_clip, images):
    network, prepare = open_clip.create_model_from_pretrained(ARCHITECTURE, pretrained=str(tiny_open_clip))
    with torch.no_grad():
        expected = network.eval().encode_image(torch.stack([prepare(image) for image in images]))
    find = opened(tiny_open_clip)
    assert find.width == 12
    torch.testing.assert_close(find(images), unit(expected))


def test_an_open_clip_is_told_apart_by_its_weights(tiny_open_clip, tmp_path):
    weights = load_file(tiny_open_clip)
    save_file(weights, tmp_path / "same.safetensors")
    save_file(weights | {"visual.proj": weights["visual.proj"] + 1}, tmp_path / "other.safetensors")
    assert opened(tmp_path / "same.safetensors").fingerprint == opened(tiny_open_clip).fingerprint
    assert opened(tmp_path / "other.safetensors").fingerprint != opened(tiny_open_clip).fingerprint


def test_a_tag_is_loaded_from_its_safetensors_with_its_own_preprocessing_and_activation(tiny_open_clip, images, monkeypatch):
    tag = {"hf_hub": "owner/model/", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCHITECTURE, {"tag": tag})
    asked = []

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        return str(tiny_open_clip)

    monkeypatch.setattr("diffalign.models.features.hf_hub_download", download)
    find = ClipFeatures(f"open_clip:{ARCHITECTURE}:tag", "main")
    assert asked == [("owner/model", "open_clip_model.safetensors", "main")]
    network = open_clip.create_model(ARCHITECTURE, pretrained=str(tiny_open_clip), force_quick_gelu=True).eval()
    cfg = open_clip.transform.PreprocessCfg(size=SIDE, mean=tag["mean"], std=tag["std"])
    prepare = open_clip.transform.image_transform_v2(cfg, is_train=False)
    with torch.no_grad():
        expected = network.encode_image(torch.stack([prepare(image) for image in images]))
    torch.testing.assert_close(find(images), unit(expected))
    assert find.fingerprint != opened(tiny_open_clip).fingerprint


@pytest.mark.parametrize(("place", "file"), [("owner/model/", "open_clip_model"), ("owner/model/pytorch_model.bin", "pytorch_model")])
def test_a_tag_without_safetensors_is_refused(tiny_open_clip, monkeypatch, place, file):
    def download(repository, name, revision):
        raise FileNotFoundError(f"404 {repository} {name}")

    monkeypatch.setattr("diffalign.models.features.hf_hub_download", download)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCHITECTURE, {"tag": {"hf_hub": place}})
    with pytest.raises(CheckpointError, match=rf"owner/model .*{file}\.safetensors .404"):
        ClipFeatures(f"open_clip:{ARCHITECTURE}:tag")


def test_a_tag_that_is_published_as_a_pickle_alone_is_refused(tiny_open_clip, monkeypatch):
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCHITECTURE, {"tag": {"url": "https://example.org/model.pt"}})
    with pytest.raises(CheckpointError, match="published as pickled weights alone"):
        ClipFeatures(f"open_clip:{ARCHITECTURE}:tag")


def test_a_file_of_open_clip_that_is_no_safetensors_is_refused(tiny_open_clip, tmp_path):
    torch.save(load_file(tiny_open_clip), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt: expected a safetensors file"):
        opened(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"none\.safetensors: there is no such file"):
        opened(tmp_path / "none.safetensors")
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CheckpointError, match=rf"weights\.safetensors: .*{ARCHITECTURE}"):
        opened(tmp_path / "weights.safetensors")


def test_weights_of_another_architecture_are_refused(tiny_open_clip, tmp_path):
    weights = load_file(tiny_open_clip)
    save_file({name: value for name, value in weights.items() if name != "visual.proj"}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights of open_clip's (.|\n)*visual\.proj"):
        opened(tmp_path / "part.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:VIT-B-32:openai", "no architecture `VIT-B-32`. Did you mean `ViT-B-32`"),
        ("open_clip:ViT-B-32", "expected open_clip:ARCHITECTURE:PRETRAINED, with"),
        ("open_clip:ViT-B-32:opennai", "expected open_clip:ARCHITECTURE:PRETRAINED, .*Did you mean `openai`"),
    ],
)
def test_a_name_that_open_clip_cannot_mean_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        ClipFeatures(name)
