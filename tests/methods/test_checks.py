"""Switches that exclude each other and packages that are missing are refused before anything is read, with the way out."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from accelerate.utils import LoggerType
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.training_utils import parse_buckets_string

from diffalign.core.errors import ConfigError
from diffalign.methods import packages
from diffalign.methods.checks import check, check_keys, check_sides, parse_buckets
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import tuning_of
from tests.checked import checked
from tests.micro_models import write_micro
from tests.paths import ASSETS

ELSEWHERE = {"_native_npu", "_native_xla"}  # for other accelerators than this package is made for


def config(**values):
    return TrainConfig(**{"dataset_name": "pairs", **values})


@pytest.fixture
def present(monkeypatch):
    """Return a set of optional packages that count as installed."""
    names: set[str] = set()
    monkeypatch.setattr("diffalign.methods.packages.find_spec", lambda name: name if name in names else None)
    return names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamw_8bit"}, "`optimizer: adamw_8bit` needs bitsandbytes or torchao: pip install bitsandbytes"),
        ({"use_8bit_adam": True}, "`optimizer: adamw_8bit` needs bitsandbytes or torchao: pip install bitsandbytes"),
        ({"optimizer": "paged_adamw_8bit"}, "`optimizer: paged_adamw_8bit` needs bitsandbytes: pip install bitsandbytes"),
        ({"quantization": "nf4"}, "`quantization: nf4` needs bitsandbytes: pip install bitsandbytes"),
        ({"quantization": "int8"}, "`quantization: int8` needs torchao: pip install torchao"),
        ({"quantization": "fp8"}, "`quantization: fp8` needs torchao: pip install torchao"),
        ({"attention_backend": "xformers"}, "`attention_backend: xformers` needs xformers: pip install xformers"),
        ({"enable_xformers_memory_efficient_attention": True}, "`attention_backend: xformers` needs xformers: pip install xformers"),
        ({"attention_backend": "flash"}, "`attention_backend: flash` needs flash_attn: pip install flash-attn --no-build-isolation"),
        ({"attention_backend": "_flash_3_hub"}, "`attention_backend: _flash_3_hub` needs kernels: pip install kernels"),
        ({"report_to": "tensorboard"}, "`report_to: tensorboard` needs tensorboard or tensorboardX: pip install tensorboard"),
        ({"report_to": "wandb, mlflow"}, "`report_to: wandb` needs wandb: pip install wandb; `report_to: mlflow` needs mlflow"),
        ({"attention_backend": "_flash_varlen_3"}, "needs flash_attn_interface: build FlashAttention-3"),
    ],
)
def test_a_missing_package_is_refused_with_the_command_that_installs_it(present, values, message):
    with pytest.raises(ConfigError, match=message):
        checked(config(**values))


def test_either_of_two_packages_gives_an_8_bit_optimiser_but_only_one_pages_it(present):
    present.add("torchao")
    assert checked(config(use_8bit_adam=True)).optimizer_name == "adamw_8bit"
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        checked(config(optimizer="paged_adamw_8bit"))
    present.add("bitsandbytes")
    assert checked(config(optimizer="paged_adamw_8bit")).optimizer_name == "paged_adamw_8bit"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_8bit_adam": True, "optimizer": "adafactor"}, "`use_8bit_adam` and `optimizer: adafactor` are both set; choose one"),
        (
            {"enable_xformers_memory_efficient_attention": True, "attention_backend": "sdpa"},
            "`enable_xformers_memory_efficient_attention` and `attention_backend: sdpa` are both set; choose one",
        ),
        ({"quantization": "nf4", "train_method": "full"}, "`train_method` is full, which needs the weights themselves"),
        ({"quantization": "int8", "train_method": "dora"}, "`train_method` is dora, which needs the weights themselves"),
        ({"attention_backend": "sage"}, "is 'sage', which has no backward pass"),
        ({"attention_backend": "_flash_3"}, "is '_flash_3', which has no backward pass"),
        ({"report_to": "json"}, r"`report_to` is 'json'. Known: .*tensorboard"),
        ({"report_to": "wanb"}, r"`report_to` is 'wanb'. Did you mean `wandb`\?"),
        ({"report_to": "wandb,none"}, "`none` stands alone"),
        ({"attention_backend": "xfromers"}, r"`attention_backend` is 'xfromers'. Did you mean `xformers`\?"),
        ({"attention_backend": "sdap"}, r"`attention_backend` is 'sdap'. Did you mean `sdpa`\?"),
    ],
)
def test_switches_that_exclude_each_other_are_refused(present, values, message):
    present |= {"bitsandbytes", "torchao", "xformers", "kernels", "flash_attn"}
    with pytest.raises(ConfigError, match=message):
        checked(config(**values))


@pytest.mark.parametrize("name", ["nf4", "int8", "fp8"])
def test_a_user_branch_may_lie_beside_a_quantised_base(present, name):
    present |= {"bitsandbytes", "torchao"}
    assert tuning_of(checked(config(quantization=name, method="ppd"))) == "user"


@pytest.mark.parametrize("text", ["672,1568;688,1504", " 64 , 32;32,64 ", "512,512"])
def test_buckets_are_read_as_diffusers_reads_them(text):
    assert list(parse_buckets(checked(config(aspect_ratio_buckets=text)).aspect_ratio_buckets)) == parse_buckets_string(text)


@pytest.mark.parametrize("text", ["", "64", "64,", "64,32;", "64x32", "64,32,16", "-64,32", "64.0,32", "64,32 32,64", "high,wide"])
def test_text_that_names_no_buckets_is_refused(text):
    with pytest.raises(ValueError, match=r"Bucket string cannot be empty|Invalid"):
        parse_buckets_string(text)
    with pytest.raises(ConfigError, match=r"`aspect_ratio_buckets`: found '.*'; expected height,width in pixels, and `;` between"):
        checked(config(aspect_ratio_buckets=text))


@pytest.mark.parametrize(("text", "named"), [("64,64;64,36", "64,36"), ("30,64", "30,64"), ("64,64;0,64", "0,64")])
def test_a_bucket_that_latents_cannot_fill_is_named(text, named, tmp_path):
    for model in (str(ASSETS / "tiny-sd"), "of/a-hub"):
        own = config(pretrained_model_name_or_path=model, aspect_ratio_buckets=text, output_dir=str(tmp_path))
        with pytest.raises(ConfigError, match=f"`aspect_ratio_buckets`: {named} .*multiples of 8"):
            check(own)


@pytest.mark.parametrize("component", ["unet", "transformer"])
def test_transformers_take_latents_in_patches(component):
    check_sides([(64, 32)], component)
    with pytest.raises(ConfigError, match=r"64,40 .*multiples of 16") if component == "transformer" else nullcontext():
        check_sides([(64, 32), (64, 40)], component)


def test_the_kind_of_a_model_folder_is_known_before_its_weights_are(tmp_path):
    model = write_micro("sd3", tmp_path / "sd3")
    with pytest.raises(ConfigError, match="64,40 of a transformer"):
        check(config(pretrained_model_name_or_path=str(model), aspect_ratio_buckets="64,32;64,40", output_dir=str(tmp_path / "run")))


def test_buckets_without_images_are_refused():
    with pytest.raises(ConfigError, match=r"`self_npo` .*prompts"):
        checked(config(method="self_npo", aspect_ratio_buckets="64,32"))
    images = {"trajectory": {"self_rollout": {"start": "image", "steps": 2}}, "transforms": ["orient", "preferred"]}
    checked(config(method="self_npo", aspect_ratio_buckets="64,32", **images))


def test_the_users_words_for_attention_lead_to_those_of_diffusers(present):
    present.add("xformers")
    assert checked(config()).attention_name is None
    assert checked(config(attention_backend="sdpa")).attention_name == "native"
    assert checked(config(enable_xformers_memory_efficient_attention=True)).attention_name == "xformers"
    both = checked(config(enable_xformers_memory_efficient_attention=True, attention_backend="xformers"))
    assert both.attention_name == "xformers"


def test_every_backend_of_diffusers_is_known_to_train_or_known_not_to():
    names = {backend.value for backend in AttentionBackendName}
    assert names == set(packages.ATTENTION) | set(packages.FORWARD_ONLY) | ELSEWHERE
    assert not set(packages.ATTENTION) & set(packages.FORWARD_ONLY)


def test_every_package_that_can_be_missing_has_a_way_to_get_it():
    needed = {*packages.QUANTIZATIONS.values(), *filter(None, packages.ATTENTION.values())}
    needed |= {name for table in (packages.OPTIMIZERS, packages.TRACKERS) for names in table.values() for name in names}
    assert needed | {"gguf"} == set(packages.PIP)  # which a denoiser's file may need


@pytest.mark.parametrize(
    ("report_to", "names"),
    [(None, []), ("none", []), ("wandb", ["wandb"]), ("tensorboard, wandb", ["tensorboard", "wandb"]), ("all", ["tensorboard", "aim"])],
)
def test_trackers_are_none_one_several_or_all_that_are_installed(present, report_to, names):
    present |= {"tensorboardX", "aim"}
    assert packages.trackers_of(config(report_to=report_to)) == names


def test_the_trackers_are_those_of_accelerate():
    assert {*packages.TRACKERS, "all"} == {kind.value for kind in LoggerType}


def test_a_dry_run_does_not_need_what_training_needs(present):
    own = config(use_8bit_adam=True, report_to="wandb")
    check_keys(own, installed=False)
    assert len(packages.missing_packages(own)) == 2
    with pytest.raises(ConfigError, match=r"bitsandbytes.*wandb"):
        check_keys(own)
