"""What a launch by accelerate may ask for is refused in a sentence where it is not done, before a model loads."""

from __future__ import annotations

import pytest

from diffalign.core.errors import ConfigError
from diffalign.core.keys import Kind
from diffalign.methods.config import TrainConfig
from diffalign.methods.launching import ENGINES, check_launch
from diffalign.methods.recipe import recipe_of


def launched(kind: Kind = "image", **options):
    config = TrainConfig(method="dpo" if kind == "text" else "diffusion_dpo", **options)
    check_launch(config, recipe_of(config, kind))


@pytest.fixture
def _spread(monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("variable", "engine"), ENGINES.items())
def test_other_engines_are_refused_by_name(monkeypatch, variable, engine):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=f"launcher asks for {engine}, .*--use_fsdp --fsdp_version 2"):
        launched()


@pytest.mark.parametrize("tuning", ["lora", "dora", "full"])
@pytest.mark.usefixtures("_spread")
def test_weights_may_be_spread_over_processes(tuning):
    launched(train_method=tuning, use_ema=True, mixed_precision="bf16", gradient_checkpointing=True)


@pytest.mark.usefixtures("_spread")
def test_fsdp_1_is_refused(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match=r"FSDP 1, .*--fsdp_version 2"):
        launched()


def test_one_process_has_nothing_to_spread(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")
    launched(optimizer="adafactor")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "text"}, "language model"),
        ({"train_method": "controlnet"}, "`train_method` is controlnet"),
        ({"trajectory": {"ddim_inversion": {}}}, "`trajectory` is ddim_inversion"),
        ({"prompts": ["a star"]}, "`prompts` draws data"),
        ({"generate": {"prompts": ["a star"]}}, "`generate` draws data"),
        ({"aspect_ratio_buckets": "64,64;32,128"}, "`aspect_ratio_buckets`"),
        ({"reference": "old_policy", "curriculum": "gap"}, "`reference` is old_policy"),
        ({"optimizer": "adafactor"}, "`optimizer` is adafactor"),
        ({"use_8bit_adam": True}, "`optimizer` is adamw_8bit"),
        ({"mixed_precision": "fp16"}, "`mixed_precision` is fp16"),
        ({"quantization": "int8"}, "`quantization` is set"),
        ({"train_text_encoder": True}, "`train_text_encoder` is set"),
        ({"eval_prompts": ["a star"]}, "`eval_prompts` is set"),
        ({"torch_compile": True}, "`torch_compile` is set"),
        ({"channels_last": True}, "`channels_last` is set"),
        ({"sequential_candidates": True}, "`sequential_candidates` is set"),
    ],
)
@pytest.mark.usefixtures("_spread")
def test_what_does_not_go_with_spread_weights_is_named(options, named):
    with pytest.raises(ConfigError, match=f"{named}.*launch without --use_fsdp"):
        launched(**options)
