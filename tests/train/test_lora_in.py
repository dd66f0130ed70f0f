"""A run goes on from a LoRA file of another program, or has one in its base; what it leaves is used with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.runs import Run
from diffalign.infer.export.export import export_run
from diffalign.infer.kinds.image import base_of
from diffalign.infer.load import load
from diffalign.methods.checks import check
from diffalign.train.align import train
from diffalign.train.trainer import trainer_for
from tests.infer.runs import weights
from tests.micro_models import picture, stock
from tests.train.configs import small_config

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def style(micro_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the denoiser in the layout of kohya's scripts, of two ranks, with alpha half the rank."""
    return write_kohya(micro_sd, tmp_path_factory.mktemp("lora") / "style.safetensors")


def write_kohya(model: Path, file: Path, text: bool = False) -> Path:
    pipe, generator, tensors = stock(model), torch.Generator().manual_seed(5), {}
    networks = {"lora_unet_": pipe.unet, **({"lora_te_text_model_": pipe.text_encoder} if text else {})}
    for prefix, network in networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear) and name.endswith((*TARGETS, "q_proj")):
                key, rank = prefix + name.removeprefix("text_model.").replace(".", "_"), 3 if name.endswith("to_v") else 2
                tensors[f"{key}.lora_down.weight"] = 0.2 * torch.randn(rank, layer.in_features, generator=generator)
                tensors[f"{key}.lora_up.weight"] = 0.2 * torch.randn(layer.out_features, rank, generator=generator)
                tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, file)
    return file


def with_style(model: Path, file: Path, strength: float = 1.0) -> dict[str, Tensor]:
    """Return the weights of the denoiser with a file of `write_kohya` added by hand."""
    network, tensors = stock(model).unet, load_file(file)
    state = network.state_dict()
    for name, layer in network.named_modules():
        key = f"lora_unet_{name.replace('.', '_')}"
        if isinstance(layer, nn.Linear) and f"{key}.alpha" in tensors:
            state[f"{name}.weight"] = (
                state[f"{name}.weight"] + strength * 0.5 * tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
            )
    return state


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=0)


def driven(trainer: Any) -> dict[str, Tensor]:
    """Return what the reference's network gives on one input, as its one "weight"."""
    with trainer.parts.reference.driving() as network, torch.no_grad():
        return {"output": network(torch.ones(1, 4, 8, 8), 300, torch.ones(1, 12, 16)).sample.clone()}


def of_weights(model: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    network = stock(model).unet
    network.load_state_dict(state)
    with torch.no_grad():
        return {"output": network(torch.ones(1, 4, 8, 8), 300, torch.ones(1, 12, 16)).sample}


def lora_config(model: Path, pairs: Path, out: Path, **options: Any) -> Any:
    values = {"max_train_steps": 2, "train_batch_size": 2, "learning_rate": 1e-2, "checkpointing_steps": 1, "cache": "off", "rank": 8}
    return small_config(model, pairs, out, **values | options)


def test_training_goes_on_from_the_file_which_is_also_its_reference(micro_sd, pairs_file, style, tmp_path):
    trainer = trainer_for(lora_config(micro_sd, pairs_file, tmp_path / "run", start_from_lora=str(style)))
    expected = of_weights(micro_sd, with_style(micro_sd, style))
    with torch.no_grad():
        at_start = trainer.network(torch.ones(1, 4, 8, 8), 300, torch.ones(1, 12, 16)).sample
    torch.testing.assert_close(at_start, expected["output"], atol=1e-5, rtol=0)
    trainer.fit()
    assert_same(driven(trainer), expected)  # as it started, though the policy has moved
    with torch.no_grad():
        assert not torch.allclose(trainer.network(torch.ones(1, 4, 8, 8), 300, torch.ones(1, 12, 16)).sample, expected["output"], atol=1e-3)


def test_a_continued_adapter_is_read_by_stock_diffusers_and_exported_with_its_ranks(micro_sd, pairs_file, style, tmp_path):
    run = train(lora_config(micro_sd, pairs_file, tmp_path / "run", start_from_lora=str(style)))
    facts = json.loads((run / "run.json").read_text())["adapter"]
    assert (facts["rank"], facts["alpha"], facts["layers"]) == (2, 1.0, ["to_k", "to_out.0", "to_q", "to_v"])
    pipe = stock(micro_sd)
    pipe.load_lora_weights(run)
    ours = load(run)
    assert (picture(pipe) == picture(ours)).all()
    assert not (picture(ours) == picture(stock(micro_sd))).all()
    export_run(run, tmp_path / "export", name="mine")
    again = train(
        lora_config(
            micro_sd,
            pairs_file,
            tmp_path / "again",
            start_from_lora=str(tmp_path / "export" / "mine_comfyui.safetensors"),
            max_train_steps=1,
            learning_rate=1e-12,
        )
    )
    assert_same(weights(load(again).unet), weights(ours.unet))


def test_a_run_that_goes_on_resumes_to_the_bit(micro_sd, pairs_file, style, tmp_path):
    options = {"start_from_lora": str(style), "max_train_steps": 2}
    whole = train(lora_config(micro_sd, pairs_file, tmp_path / "whole", **options))
    half = train(lora_config(micro_sd, pairs_file, tmp_path / "half", **options | {"max_train_steps": 1}))
    train(lora_config(micro_sd, pairs_file, half, **options, resume_from_checkpoint="latest"))
    one, other = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (whole, half))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_file_in_the_base_is_in_policy_and_reference_and_wherever_the_run_is_used(tuning, micro_sd, pairs_file, tmp_path):
    file = write_kohya(micro_sd, tmp_path / "style.safetensors", text=True)
    config = lora_config(micro_sd, pairs_file, tmp_path / "run", base_lora=[f"{file}:0.8"], train_method=tuning, learning_rate=1e-3)
    trainer = trainer_for(config)
    assert_same(driven(trainer), of_weights(micro_sd, with_style(micro_sd, file, 0.8)))
    run = Run.open(trainer.fit())
    assert_same(driven(trainer), of_weights(micro_sd, with_style(micro_sd, file, 0.8)))
    (fact,) = run.facts["base_lora"]
    assert (fact["file"], fact["strength"]) == (str(file), 0.8)
    base = base_of(run)
    assert_same(base.unet.state_dict(), with_style(micro_sd, file, 0.8))
    assert not torch.equal(next(base.text_encoder.parameters()), torch.zeros(1))
    plain = stock(micro_sd).text_encoder.state_dict()
    assert any(not torch.equal(value, plain[name]) for name, value in base.text_encoder.state_dict().items())
    used = load(run.folder)
    trained = {name.replace(".base_layer", ""): value for name, value in weights(trainer.network).items()}
    assert_same(weights(used.unet), trained)
    export_run(run.folder, tmp_path / "merged", formats=["merged"])
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert_same(merged.unet.state_dict(), trained)
    assert "style.safetensors" in (tmp_path / "merged" / "README.md").read_text()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"style\.safetensors"):
        load(run.folder)


# What stands beside start_from_lora or base_lora, and the facts of the refusal.
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "rank": ({"rank": 16}, ["`rank`", "16", "2", "3"]),
    "alpha": ({"lora_alpha": 4.0}, ["`lora_alpha`", "4"]),
    "layers": ({"lora_layers": ["to_q"]}, ["`lora_layers`", "to_q"]),
    "full": ({"train_method": "full"}, ["train_method", "full", "base_lora"]),
    "dora": ({"train_method": "dora"}, ["train_method", "dora"]),
    "steering": ({"method": "diffusion_npo"}, ["diffusion_npo", "base_lora"]),
    "another run": ({"start_from": "outputs/run"}, ["`start_from`", "`start_from_lora`"]),
    "no file": ({"start_from_lora": "nowhere.safetensors"}, ["nowhere.safetensors"]),
    "no file in the base": ({"base_lora": ["nowhere.safetensors:0.5"]}, ["nowhere.safetensors"]),
    "quantised": ({"base_lora": ["style.safetensors"], "quantization": "int8"}, ["`base_lora`", "`quantization`"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_a_file_is_refused_by_name_before_weights_load(case, micro_sd, pairs_file, style, tmp_path, monkeypatch):
    options, facts = REFUSED[case]
    monkeypatch.setattr("diffalign.methods.packages.missing_packages", lambda _: [])
    with pytest.raises((ConfigError, CheckpointError)) as error:
        check(lora_config(micro_sd, pairs_file, tmp_path / "run", **{"start_from_lora": str(style)} | options), installed=False)
    assert [fact for fact in facts if fact not in str(error.value)] == []


def test_a_file_of_another_model_and_one_with_text_layers_are_refused_before_weights_load(micro_sd, pairs_file, style, tmp_path):
    file = write_kohya(micro_sd, tmp_path / "text.safetensors", text=True)
    with pytest.raises(ConfigError, match="text_encoder"):
        check(lora_config(micro_sd, pairs_file, tmp_path / "run", start_from_lora=str(file)))
    for key, value in (("start_from_lora", str(style)), ("base_lora", [str(style)])):
        with pytest.raises(CheckpointError, match=r"style\.safetensors.*UNet2DConditionModel"):
            check(lora_config(Path("assets/tiny-sd"), pairs_file, tmp_path / "run", **{key: value}))


def test_a_run_that_went_on_from_a_file_goes_on_as_a_file(micro_sd, pairs_file, style, tmp_path):
    run = train(lora_config(micro_sd, pairs_file, tmp_path / "run", start_from_lora=str(style), max_train_steps=1))
    with pytest.raises(ConfigError, match="--start_from_lora"):
        check(lora_config(micro_sd, pairs_file, tmp_path / "again", start_from=str(run)))
    check(lora_config(micro_sd, pairs_file, tmp_path / "again", start_from_lora=str(run)))


def test_a_dry_run_counts_the_adapter_of_the_file_and_names_the_base(micro_sd, pairs_file, style, tmp_path, capsys):
    words = ["train", "--pretrained_model_name_or_path", str(micro_sd), "--dataset_name", str(pairs_file), "--dry_run"]
    assert main([*words, "--start_from_lora", str(style), "--base_lora", f"{style}:0.5", "--output_dir", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "of ranks 2 to 3" in printed
    assert f"{style} at strength 0.5" in printed
    numbers = sum(value.numel() for name, value in load_file(style).items() if not name.endswith("alpha"))
    assert f"{numbers:,}" in printed
