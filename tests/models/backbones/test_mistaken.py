"""What stands in place of a model folder is named for what it is, by every reader of models and before a weight loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import httpx
from safetensors.torch import save_file

from diffalign.core.errors import CheckpointError
from diffalign.models.backbones import hub
from diffalign.models.backbones.folders import check_folder, check_language_model, is_local
from diffalign.models.backbones.mistaken import SINGLE_FILES, WEIGHTS, refuse_vae
from diffalign.models.backbones.table import load_pipeline
from tests.micro_models import write_micro


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro("sd", tmp_path_factory.mktemp("models") / "micro-sd")


def refusal(name: str) -> str:
    """Return what both checks say of a name, which is the same."""
    said = set()
    for check in (check_folder, check_language_model, load_pipeline):
        with pytest.raises(CheckpointError) as error:
            check(name)
        said.add(str(error.value))
    (text,) = said
    assert text.startswith(name)
    return text


def test_a_denoiser_alone_is_called_so_with_the_flag_that_takes_it(tmp_path):
    for mark, kind in SINGLE_FILES.items():
        file = tmp_path / f"{kind}.safetensors"
        save_file({f"model.{mark}.0.weight": torch.ones(1)}, file)
        text = refusal(str(file))
        for fact in ("a denoiser alone", "--denoiser"):
            assert fact in text, kind


def test_a_pickled_checkpoint_is_called_so_with_the_lines_that_convert_it(tmp_path):
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    text = refusal(str(tmp_path / "old.ckpt"))
    for fact in (
        "a single-file checkpoint",
        "from diffusers import StableDiffusionPipeline",
        f"from_single_file('{tmp_path / 'old.ckpt'}')",
    ):
        assert fact in text


def test_other_files_urls_and_parts_are_called_what_they_are(model, tmp_path):
    save_file({"unet.to_q.lora_A.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("notes")
    shutil.copytree(model / "vae", tmp_path / "vae")
    facts = {
        str(tmp_path / "lora.safetensors"): "a LoRA adapter, and no model",
        str(tmp_path / "cut.safetensors"): "damaged",
        str(tmp_path / "model.gguf"): "GGUF",
        str(tmp_path / "notes.txt"): "a file",
        "single/x.safetensors": "there is no such file",
        "https://huggingface.co/owner/name/tree/main": "give the hub id owner/name",
        "https://example.com/model.safetensors": "a URL",
        "s3://bucket/model": "a URL",
        "owner/name/unet": "give owner/name",
        str(model / "unet"): f"the part `unet` of the model in {model}; give {model}",
        str(model / "text_encoder"): f"give {model}",
        str(model / "unet" / "diffusion_pytorch_model.safetensors"): f"the part `unet` of the model in {model}",
        str(tmp_path / "vae"): "a single network (AutoencoderKL)",
    }
    for name, fact in facts.items():
        assert fact in refusal(name), name


def test_a_file_of_weights_is_never_a_hub_id():
    for suffix in WEIGHTS:
        assert is_local(f"owner/name{suffix}"), suffix
        assert is_local(f"owner/name{suffix.upper()}"), suffix
    assert not is_local("owner/name-v1.5")


def test_what_stands_in_for_a_vae_is_a_vae(model, tmp_path):
    refuse_vae(str(model / "vae"))
    refuse_vae("owner/name")
    (tmp_path / "vae.safetensors").write_bytes(b"")
    for name, fact in {
        str(tmp_path / "vae.safetensors"): "a URL or a file",
        "https://example.com/vae": "a URL or a file",
        str(model): f"its VAE is {model / 'vae'}",
        str(model / "unet"): "UNet2DConditionModel",
        str(tmp_path): "config.json",
    }.items():
        with pytest.raises(CheckpointError) as error:
            refuse_vae(name)
        assert fact in str(error.value), name


def test_an_index_names_classes_of_diffusers_and_transformers_alone(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    for odd in (["os", "system"], ["my_module", "Model"], ["diffusers"], [1, 2], ["diffusers", None], [["os"], "system"]):
        (folder / "model_index.json").write_text(json.dumps(index | {"vae": odd}))
        for check in (check_folder, load_pipeline):
            with pytest.raises(CheckpointError, match="`vae` is"):
                check(str(folder))
    for odd in (["StableDiffusionPipeline"], None, {"a": 1}, 7):
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": odd}))
        with pytest.raises(CheckpointError, match="_class_name"):
            check_folder(str(folder))


class _Unreachable:
    """A session without a network."""

    def head(self, url: str, timeout: float) -> None:
        assert timeout <= 2.0
        raise httpx.ConnectError(f"no route to {url}")


def test_a_hub_that_cannot_be_reached_is_called_so_after_one_short_attempt(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_session", _Unreachable)
    for name in ("owner/name", "owner/name-xl"):
        with pytest.raises(CheckpointError, match="the hub cannot be reached") as error:
            hub.cache_only(name, "model_index.json")
        for fact in (name, hub.constants.ENDPOINT, "no route", "model_index.json"):
            assert fact in str(error.value)
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        load_pipeline("owner/name")
    assert not hub.cache_only(str(model), "model_index.json")
    cached = tmp_path / "model_index.json"
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    assert hub.cache_only("owner/name", "model_index.json")


def test_switched_off_the_hub_is_not_asked(monkeypatch):
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: True)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        hub.cache_only("owner/name", "config.json")
