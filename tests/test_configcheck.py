"""Switches that exclude each other and packages that are missing are refused before anything is read, with the way out."""

from __future__ import annotations

import pytest
from diffusers.models.attention_dispatch import AttentionBackendName

from diffalign import configcheck
from diffalign.config import TrainConfig
from diffalign.errors import ConfigError

ELSEWHERE = {"_native_npu", "_native_xla"}  # for other accelerators than this package is made for


def config(**values):
    return TrainConfig(**{"dataset_name": "pairs", **values})


@pytest.fixture
def present(monkeypatch):
    """Return a set of optional packages that count as installed."""
    names: set[str] = set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in names else None)
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
        ({"attention_backend": "_flash_varlen_3"}, "needs flash_attn_interface: build FlashAttention-3"),
    ],
)
def test_a_missing_package_is_refused_with_the_command_that_installs_it(present, values, message):
    with pytest.raises(ConfigError, match=message):
        config(**values).check()


def test_either_of_two_packages_gives_an_8_bit_optimiser_but_only_one_pages_it(present):
    present.add("torchao")
    assert config(use_8bit_adam=True).check().optimizer_name == "adamw_8bit"
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        config(optimizer="paged_adamw_8bit").check()
    present.add("bitsandbytes")
    assert config(optimizer="paged_adamw_8bit").check().optimizer_name == "paged_adamw_8bit"


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
        ({"attention_backend": "xfromers"}, r"`attention_backend` is 'xfromers'. Did you mean `xformers`\?"),
        ({"attention_backend": "sdap"}, r"`attention_backend` is 'sdap'. Did you mean `sdpa`\?"),
    ],
)
def test_switches_that_exclude_each_other_are_refused(present, values, message):
    present |= {"bitsandbytes", "torchao", "xformers", "kernels", "flash_attn"}
    with pytest.raises(ConfigError, match=message):
        config(**values).check()


def test_the_users_words_for_attention_lead_to_those_of_diffusers(present):
    present.add("xformers")
    assert config().check().attention_name is None
    assert config(attention_backend="sdpa").check().attention_name == "native"
    assert config(enable_xformers_memory_efficient_attention=True).check().attention_name == "xformers"
    both = config(enable_xformers_memory_efficient_attention=True, attention_backend="xformers").check()
    assert both.attention_name == "xformers"


def test_every_backend_of_diffusers_is_known_to_train_or_known_not_to():
    names = {backend.value for backend in AttentionBackendName}
    assert names == set(configcheck.ATTENTION) | set(configcheck.FORWARD_ONLY) | ELSEWHERE
    assert not set(configcheck.ATTENTION) & set(configcheck.FORWARD_ONLY)


def test_every_package_that_can_be_missing_has_a_way_to_get_it():
    packages = {*configcheck.QUANTIZATIONS.values(), *filter(None, configcheck.ATTENTION.values())}
    packages |= {name for names in configcheck.OPTIMIZERS.values() for name in names}
    assert packages == set(configcheck.PIP)
