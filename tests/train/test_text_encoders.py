"""Adapters of text encoders: trained with the denoiser's, saved, loaded, resumed, continued and judged with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.infer.draw_votes import open_painters
from diffalign.infer.export.export import export_run
from diffalign.infer.load import load
from diffalign.methods.checks import check
from diffalign.models import adapters
from diffalign.models.backbones.base_lora import BaseLora
from diffalign.models.backbones.table import load_pipeline
from diffalign.models.prompted import text_encoders
from diffalign.train.align import train
from diffalign.train.trainer import trainer_for
from tests.infer.runs import weights
from tests.micro_models import MAKERS, picture, stock
from tests.shades import add_scorer
from tests.train.configs import small_config
from tests.train.online.scorers import Bright, online_config
from tests.train.online.test_rollout import POLICY

WEIGHTS = "pytorch_lora_weights.safetensors"
PROMPTS = ("a red star", "", "a blue moon")


@pytest.fixture(scope="module")
def micro_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sdxl")
    MAKERS["sdxl"]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(micro_sd: Path, micro_sdxl: Path) -> dict[str, Path]:
    return {"sd": micro_sd, "sdxl": micro_sdxl}


def config(model: Path, pairs: Path, out: Path, **options: Any) -> Any:
    values = {"max_train_steps": 2, "train_batch_size": 2, "learning_rate": 1e-2, "checkpointing_steps": 1, "cache": "off"}
    return small_config(model, pairs, out, **values | {"train_text_encoder": True} | options)


@pytest.fixture(scope="module")
def runs(models: dict[str, Path], pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {family: train(config(model, pairs_file, folder / family)) for family, model in models.items()}


def asked(model: Any, prompts: tuple[str, ...] = PROMPTS) -> torch.Tensor:
    """Return what the denoiser says of one picture under each prompt."""
    condition, x = model.encode_prompt(prompts), torch.linspace(-1, 1, 4 * 8 * 8).view(1, 4, 8, 8).expand(len(prompts), -1, -1, -1)
    with torch.no_grad():
        return model.predict(model.network, x, torch.full((len(prompts),), 300), condition)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_with_the_adapters_off_the_denoiser_is_the_base_to_the_bit(family, models, pairs_file, tmp_path):
    """The base of a run without them, which embeds prompts by the stock pipeline; an empty prompt, too, whose SDXL has zeros for it."""
    base = trainer_for(config(models[family], pairs_file, tmp_path / "base", train_text_encoder=False)).parts.backbone
    trainer = trainer_for(config(models[family], pairs_file, tmp_path / "run"))
    model = trainer.parts.backbone
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.1)
    with trainer.parts.reference.driving():
        assert torch.equal(asked(model), asked(base))
    assert not torch.allclose(asked(model), asked(base), atol=1e-3)
    with adapters.disabled(model.denoiser.unet):  # the encoders alone
        moved = (asked(model) - asked(base)).abs().flatten(1).amax(dim=1)
    assert (moved[[0, 2]] > 1e-4).all()
    assert (moved[1] == 0) == (family == "sdxl")


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_gradient_reaches_every_adapter_of_every_encoder(family, models, pairs_file, tmp_path):
    trainer = trainer_for(config(models[family], pairs_file, tmp_path / "run", gradient_checkpointing=family == "sdxl"))
    with torch.no_grad():  # else the first gradient of lora_A is zero
        for parameter in trainer.parameters:
            parameter.add_(0.1)
    model = trainer.parts.backbone
    assert list(text_encoders(model.denoiser)) == ["text_encoder", "text_encoder_2"][: len(family) // 2]
    trainer.fit()
    before = trainer_for(config(models[family], pairs_file, tmp_path / "again")).parts.backbone
    for part, encoder in text_encoders(model.denoiser).items():
        own, there = dict(encoder.named_parameters()), dict(text_encoders(before.denoiser)[part].named_parameters())
        assert {"q_proj", "k_proj", "v_proj", "out_proj"} == {name.split(".")[-4] for name in own if "lora_A" in name}
        for name, value in own.items():
            assert torch.equal(value - 0.1 * ("lora_" in name and value.requires_grad), there[name]) == (not value.requires_grad), name


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_stock_diffusers_draws_a_run_as_it_is_loaded_here(family, runs, models):
    tensors = load_file(runs[family] / WEIGHTS)
    encoders = ["text_encoder", "text_encoder_2"][: len(family) // 2]
    assert {name.split(".")[0] for name in tensors} == {"unet", *encoders}
    assert all(name.startswith(tuple(f"{part}.text_model.encoder.layers." for part in encoders)) for name in tensors if "unet" not in name)
    pipe, ours = stock(models[family]), load(runs[family])
    pipe.load_lora_weights(runs[family])
    assert (picture(pipe) == picture(ours)).all()
    assert not (picture(ours) == picture(stock(models[family]))).all()
    with adapters.disabled(ours.text_encoder):  # it has to do with the picture
        assert not (picture(ours) == picture(pipe)).all()


# The prefixes under which ComfyUI and kohya's scripts look for the layers of an encoder.
KOHYA = {"sd": {"text_encoder": "lora_te_"}, "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_every_exported_file_holds_every_adapter_under_the_names_of_its_program(family, runs, models, tmp_path):
    export_run(runs[family], tmp_path / "export", name="mine", formats=["diffusers", "comfyui", "merged"])
    ours, tensors = load(runs[family]), load_file(tmp_path / "export" / "mine_comfyui.safetensors")
    modules = {name.split(".")[0] for name in tensors}
    expected = set[str]()
    for part, prefix in KOHYA[family].items():
        count = getattr(ours, part).config.num_hidden_layers - (family == "sdxl" and part == "text_encoder")
        layers = [f"{number}_self_attn_{name}_proj" for number in range(count) for name in "qkv"]
        layers += [f"{number}_self_attn_out_proj" for number in range(count)]
        expected |= {f"{prefix}text_model_encoder_layers_{layer}" for layer in layers}
    assert {module for module in modules if module.startswith("lora_te")} == expected
    assert {f"{module}.{end}" for module in modules for end in ("lora_down.weight", "lora_up.weight", "alpha")} == tensors.keys()
    for name in ("mine_comfyui.safetensors", WEIGHTS):
        pipe = stock(models[family])
        pipe.load_lora_weights(tmp_path / "export", weight_name=name)
        assert abs(picture(pipe) - picture(ours)).max() < 1e-3, name
    merged = stock(tmp_path / "export")
    assert abs(picture(merged) - picture(ours)).max() < 1e-3
    base, run = open_painters(str(runs[family]), [0.0, 1.0])
    base.prepare()
    assert (picture(base.pipe) == picture(stock(models[family]))).all()
    run.prepare()
    assert (picture(run.pipe) == picture(ours)).all()


def test_a_run_is_the_same_live_cached_and_resumed(micro_sdxl, pairs_file, runs, tmp_path):
    cached = {"cache": "disk", "cache_dir": str(tmp_path / "cache"), "cache_precision": "bfloat16"}
    half = train(config(micro_sdxl, pairs_file, tmp_path / "half", max_train_steps=1))
    train(config(micro_sdxl, pairs_file, half, resume_from_checkpoint="latest"))
    tokens = train(config(micro_sdxl, pairs_file, tmp_path / "cached", **cached | {"cache_precision": "float32"}))
    whole, other, near = (load_file(folder / WEIGHTS) for folder in (runs["sdxl"], half, tokens))
    assert whole.keys() == other.keys() == near.keys()
    assert all(torch.equal(value, other[name]) for name, value in whole.items())
    # Latents are encoded in other batches, and the first steps of AdamW only see the signs.
    assert sum(float((value - near[name]).abs().mean()) for name, value in whole.items()) < 1e-3
    train(config(micro_sdxl, pairs_file, tmp_path / "small", **cached))  # tokens are no numbers of half precision


def test_a_run_goes_on_from_another_or_from_its_file_with_all_adapters(micro_sd, pairs_file, runs, tmp_path):
    for number, key in enumerate(("start_from", "start_from_lora")):
        trainer = trainer_for(config(micro_sd, pairs_file, tmp_path / str(number), **{key: str(runs["sd"])}))
        own = trainer.parts.backbone.adapted
        for part, network in own.items():
            there = weights(getattr(load(runs["sd"]), part))
            assert all(torch.equal(value, there[name]) for name, value in weights(network).items())
        with pytest.raises((ConfigError, CheckpointError), match="text_encoder"):
            check(config(micro_sd, pairs_file, tmp_path / "odd", train_text_encoder=False, **{key: str(runs["sd"])}))
    plain = train(config(micro_sd, pairs_file, tmp_path / "plain", train_text_encoder=False))
    trainer = trainer_for(config(micro_sd, pairs_file, tmp_path / "new", start_from_lora=str(plain)))  # whose encoders begin anew
    assert set(trainer.parts.backbone.adapted) == {"unet", "text_encoder"}
    fused = load_pipeline(str(micro_sd), base_loras=[BaseLora.of(str(runs["sd"]))])
    assert abs(picture(fused) - picture(load(runs["sd"]))).max() < 1e-3


def test_layers_of_a_file_that_the_unet_of_sdxl_does_not_read_are_left_out(micro_sdxl, pairs_file, runs, tmp_path):
    """Files of kohya's scripts have the last layer of the first encoder."""
    export_run(runs["sdxl"], tmp_path / "export", name="mine", formats=["comfyui"])
    file = tmp_path / "export" / "mine_comfyui.safetensors"
    tensors, first = load_file(file), "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    last = first.replace("_0_", f"_{load(runs['sdxl']).text_encoder.config.num_hidden_layers - 1}_")
    more = {name.replace(first, last): value + 1.0 for name, value in tensors.items() if name.startswith(first)}
    save_file(tensors | more, tmp_path / "kohya.safetensors")
    one, two = (
        trainer_for(config(micro_sdxl, pairs_file, tmp_path / path.stem, start_from_lora=str(path)))
        for path in (file, tmp_path / "kohya.safetensors")
    )
    assert torch.equal(asked(one.parts.backbone), asked(two.parts.backbone))
    assert adapters.trained_state(one.network).keys() == adapters.trained_state(two.network).keys()


def test_online_training_moves_the_encoders_by_replayed_steps(micro_sd, tmp_path, monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)
    run = train(online_config(micro_sd, tmp_path / "run", **POLICY, train_text_encoder=True, max_train_steps=1))
    moved = {name.split(".")[0] for name, value in load_file(run / WEIGHTS).items() if "lora_B" in name and value.any()}
    assert moved == {"unet", "text_encoder"}


def test_encoders_learn_at_a_rate_of_their_own(micro_sd, pairs_file, tmp_path):
    slow = train(config(micro_sd, pairs_file, tmp_path / "slow", text_encoder_lr=1e-12, max_train_steps=1))
    ups = {name: float(value.abs().max()) for name, value in load_file(slow / WEIGHTS).items() if "lora_B" in name}
    assert max(value for name, value in ups.items() if name.startswith("text_encoder.")) < 1e-11
    assert min(value for name, value in ups.items() if name.startswith("unet.")) > 1e-3


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "all weights": ({"train_method": "full"}, ["train_text_encoder", "full"]),
    "negative guidance": ({"method": "diffusion_npo"}, ["train_text_encoder", "diffusion_npo"]),
    "a rate of nothing": ({"train_text_encoder": False, "text_encoder_lr": 1e-4}, ["text_encoder_lr"]),
    "another family": ({"pretrained_model_name_or_path": "assets/tiny-sd3"}, ["train_text_encoder", "sd, sdxl", "sd3"]),
    "steps of the start": ({"start_model_steps": 1, "prompts": ["a"], "scorers": ["adherence"], "dataset_name": ""}, ["start_model_steps"]),
    "users": ({"method": "ppd"}, ["train_text_encoder", "user"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_beside_it_is_refused_by_name(case, micro_sd, pairs_file, tmp_path):
    options, facts = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        check(config(options.pop("pretrained_model_name_or_path", micro_sd), pairs_file, tmp_path / "run", **options))
    assert [fact for fact in facts if fact not in str(error.value)] == []


def test_a_dry_run_counts_the_encoders_and_the_command_line_trains_them(micro_sdxl, pairs_file, tmp_path, capsys):
    words = ["train", "--pretrained_model_name_or_path", str(micro_sdxl), "--dataset_name", str(pairs_file), "--rank", "2"]
    words += ["--train_text_encoder", "--output_dir", str(tmp_path / "run"), "--max_train_steps", "1", "--train_batch_size", "1"]
    assert main([*words, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert main(words) == 0
    tensors = load_file(tmp_path / "run" / WEIGHTS)
    trained = sum(value.numel() for value in tensors.values())
    assert f"{trained:,} (" in printed
    assert "text_encoder and text_encoder_2" in printed
    assert set(json.loads((tmp_path / "run" / "run.json").read_text())["text_encoder_adapters"]) == {"text_encoder", "text_encoder_2"}
