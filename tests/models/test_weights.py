"""Networks trained as a whole, and bases, whose files are damaged, unsound or of another network, are refused and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.core.errors import CheckpointError
from diffalign.models import adapters
from diffalign.models.backbones.table import load_pipeline
from diffalign.models.weights import read_network, weights_hash
from tests.micro_models import write_micro

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A folder with the network of a full fine-tune, to be broken."""
    shutil.copytree(base / "unet", tmp_path / "run" / "unet")
    return tmp_path / "run"


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / FILE)), folder / FILE, {"format": "pt"})


def content(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        whole = (folder / FILE).read_bytes()
        (folder / FILE).write_bytes(change(whole))

    return do


def config(**changes: Any) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        facts = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(facts | changes))

    return do


def sharded(folder: Path) -> None:
    """Write the network in pieces."""
    network = UNet2DConditionModel.from_pretrained(folder)
    (folder / FILE).unlink()
    network.save_pretrained(folder, max_shard_size="60KB")


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("*-of-*.safetensors"))[1].unlink()


def with_index(text: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        sharded(folder)
        (folder / f"{FILE}.index.json").write_text(text)

    return do


def with_value(value: float) -> Callable[[Path], None]:
    return tensors(lambda found: found | {"conv_in.bias": torch.tensor([0.0, value] + [0.0] * 6)})


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights are missing": (tensors(lambda found: dict(list(found.items())[5:])), "not there"),
    "weights are left over": (tensors(lambda found: found | {"left.over": torch.ones(1)}), "left.over"),
    "a shape": (tensors(lambda found: found | {"conv_in.bias": torch.ones(3)}), "conv_in.bias"),
    "whole numbers": (tensors(lambda found: found | {"conv_in.bias": torch.ones(8, dtype=torch.int32)}), "I32"),
    "a number that is none": (with_value(float("nan")), "conv_in.bias"),
    "an absurd number": (with_value(-1e30), "-1e+30"),
    "half written": (content(lambda whole: whole[: len(whole) // 2]), FILE),
    "empty": (content(lambda _: b""), "empty"),
    "a pointer": (content(lambda _: b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
    "a class in a list": (config(_class_name=["UNet2DConditionModel"]), "_class_name"),
    "another class": (config(_class_name="SD3Transformer2DModel"), "SD3Transformer2DModel"),
    "another width": (config(cross_attention_dim=32), "unet"),
    "another meaning": (config(flip_sin_to_cos=False), "flip_sin_to_cos"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "a damaged config": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "a config that is a list": (lambda folder: (folder / "config.json").write_text("[1]"), "config.json"),
    "pickled": (lambda folder: (folder / FILE).rename(folder / "diffusion_pytorch_model.bin"), "unet"),
    "a shard is missing": (without_a_shard, "-00002-of-"),
    "an index that is a list": (with_index("[1]"), "index.json"),
    "an index that leads elsewhere": (with_index(json.dumps({"weight_map": {"a": "../../secret"}})), "weight_map"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_trained_network_is_whole_of_its_base_and_sound_or_refused(fault, base, run):
    change, fact = FAULTS[fault]
    change(run / "unet")
    network = UNet2DConditionModel.from_pretrained(base / "unet")
    with pytest.raises(CheckpointError) as refusal:
        adapters.load_result(network, run, full=True, component="unet")
    assert fact in str(refusal.value)
    assert str(run / "unet") in str(refusal.value)


def test_a_sound_network_is_read_in_one_piece_and_in_several(base, run):
    expected = weights_hash(UNet2DConditionModel.from_pretrained(base / "unet"))
    facts = UNet2DConditionModel.load_config(base / "unet")
    assert weights_hash(read_network(UNet2DConditionModel, run / "unet", facts)) == expected
    sharded(run / "unet")
    assert weights_hash(read_network(UNet2DConditionModel, run / "unet", facts)) == expected


def test_a_base_with_a_missing_or_unsound_weight_in_any_part_is_refused(base, tmp_path):
    for part in ("unet", "vae", "text_encoder"):
        for fault in ("missing", "nan"):
            folder = shutil.copytree(base, tmp_path / f"{part}-{fault}")
            (file,) = (folder / part).glob("*.safetensors")
            found = load_file(file)
            name = sorted(name for name in found if name.endswith("weight"))[0]
            if fault == "missing":
                del found[name]
            else:
                found[name].view(-1)[0] = float("nan")
            save_file(found, file, {"format": "pt"})
            with pytest.raises(CheckpointError) as refusal:
                load_pipeline(str(folder))
            assert name.removeprefix("text_model.") in str(refusal.value), (part, fault)
            assert str(folder) in str(refusal.value), (part, fault)


def test_a_hash_of_weights_sees_every_number(base):
    network = UNet2DConditionModel.from_pretrained(base / "unet")
    before = weights_hash(network)
    with torch.no_grad():
        weight = max(network.parameters(), key=torch.numel)
        assert weight.numel() > 256
        weight.view(-1)[-1] += 1.0
    assert weights_hash(network) != before
