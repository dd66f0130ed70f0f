"""Adapters and denoisers that are damaged, unsound or made for another network are refused wherever they are read, and named."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.core.errors import CheckpointError
from diffalign.infer.export.export import export_run
from diffalign.infer.load import load
from diffalign.infer.negative import negative_guidance
from diffalign.models import adapters
from diffalign.models.adapter_files import METADATA, WEIGHTS, AdapterFile, adapter_facts
from tests.infer.runs import ALPHA, RANK, write_run
from tests.micro_models import stock, write_micro

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


@pytest.fixture(scope="module")
def sound(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run", base)


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be broken."""
    return shutil.copytree(sound, tmp_path / "run")


@pytest.fixture(scope="module")
def network(base: Path) -> nn.Module:
    """The network that the adapter was trained on."""
    return stock(base).unet


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as content:
        return dict(content.metadata())


def network_with_adapter(base: Path):
    """Return a network with an adapter like the run's, as training builds one to start from a run or to judge it."""
    network = UNet2DConditionModel.from_pretrained(base / "unet")
    adapters.add_lora(network, targets=adapters_targets(), rank=RANK, alpha=ALPHA)
    return network


def adapters_targets() -> tuple[str, ...]:
    return ("to_q", "to_k", "to_v", "to_out.0")


def readers(base: Path, run: Path, out: Path) -> dict[str, Callable[[], object]]:
    """Return everything that reads the adapter of a run, by name."""

    def negative() -> None:
        with negative_guidance(stock(base), run):
            pass

    return {
        "load": lambda: load(run),
        "load in bfloat16": lambda: load(run, dtype=torch.bfloat16),
        "start_from": lambda: adapters.load_result(network_with_adapter(base), run, full=False, component="unet", untrained=True),
        "heldout": lambda: adapters.load_result(network_with_adapter(base), run, full=False, component="unet"),
        "negative guidance": negative,
        "export": lambda: export_run(run, out / "diffusers"),
        "export merged": lambda: export_run(run, out / "merged", formats=["merged"]),
    }


def renamed(tensors: Tensors) -> Tensors:
    return {name.replace("unet.", "model.diffusion_model."): value for name, value in tensors.items()}


def second_half(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[::2])


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def moved(before: str, after: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(before, after): value for name, value in tensors.items()}


def with_value(value: float, side: str = "lora_A") -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        name = next(name for name in tensors if side in name)
        odd = tensors[name].clone()
        odd.view(-1)[3] = value
        return tensors | {name: odd}

    return change


# What is done to the tensors, and what the error has to name.
TENSORS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "every key is renamed": (renamed, "model.diffusion_model"),
    "there is nothing": (lambda _: {}, "no tensors"),
    "every second key is missing": (second_half, "unet.down_blocks"),
    "the down blocks are missing": (without("down_blocks"), "unet.down_blocks"),
    "the up blocks are renamed": (moved("up_blocks", "left_blocks"), "left_blocks"),
    "it is for another family": (moved("unet.", "transformer."), "transformer."),
    "one number is none": (with_value(float("nan")), "nan"),
    "one number is infinite": (with_value(float("-inf"), "lora_B"), "inf"),
    "one number is absurd": (with_value(1e30), "1e+30"),
    "another rank": (lambda t: {name: value.repeat_interleave(2, dim=1) for name, value in t.items()}, "shape"),
    "one key too many": (lambda t: t | {"unet.conv_in.lora_A.weight": torch.ones(4, 4)}, "conv_in"),
    "whole numbers": (lambda t: {name: value.to(torch.int32) for name, value in t.items()}, "int32"),
}


def put(run: Path, network: nn.Module) -> None:
    """Read the run's adapter into a copy of a network, as every reader does."""
    AdapterFile.read(run, "unet").put(copy.deepcopy(network))


def test_tensors_that_are_not_the_adapter_of_this_network_are_refused(network, run):
    file = run / WEIGHTS
    facts, tensors = metadata(file), load_file(file)
    for fault, (change, fact) in TENSORS.items():
        save_file({name: value.contiguous() for name, value in change(tensors).items()}, file, facts)
        with pytest.raises(CheckpointError) as refusal:
            put(run, network)
        assert fact in str(refusal.value), fault
        assert str(file) in str(refusal.value), fault


@pytest.mark.parametrize("fault", ["there is nothing", "every second key is missing", "one number is none", "half written"])
def test_every_reader_of_an_adapter_refuses_what_is_no_adapter_of_its_network(fault, base, run, tmp_path):
    file = run / WEIGHTS
    if fault in BYTES:
        change_bytes, fact = BYTES[fault]
        file.write_bytes(change_bytes(file.read_bytes()))
    else:
        change, fact = TENSORS[fault]
        facts = metadata(file)
        save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file, facts)
    for reader, read in readers(base, run, tmp_path / "out").items():
        with pytest.raises(CheckpointError) as refusal:
            read()
        assert fact in str(refusal.value), reader
        assert str(file) in str(refusal.value), reader
    assert not list(tmp_path.rglob("out/**/*.safetensors"))


def header(content: object, body: bytes) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


# What lies in place of the file, and what the error has to say.
BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "empty"),
    "half written": (lambda whole: whole[: len(whole) // 2], "bytes"),
    "one byte short": (lambda whole: whole[:-1], "bytes"),
    "one byte too long": (lambda whole: whole + b"x", "bytes"),
    "a huge header": (lambda _: struct.pack("<Q", 2**63) + b"{}", "bytes"),
    "a git-lfs pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs"),
    "a web page": (lambda _: b"<!DOCTYPE html><html></html>", "web page"),
    "overlapping offsets": (lambda _: header({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)), "damaged"),
    "a shape that is not there": (lambda _: header({"a": tensor([2**40, 4], 0, 16)}, bytes(16)), "damaged"),
    "a shape without end": (lambda _: header({"a": tensor([2**63, 4], 0, 16)}, bytes(16)), "damaged"),
    "an unknown dtype": (lambda _: header({"a": {**tensor([4], 0, 16), "dtype": "X9"}}, bytes(16)), "damaged"),
    "a list": (lambda _: header([1], b""), "damaged"),
    "nested without end": (lambda _: struct.pack("<Q", 100_000) + b"[" * 100_000, "damaged"),
}


def test_a_file_that_is_not_whole_is_refused(network, run):
    file = run / WEIGHTS
    whole = file.read_bytes()
    for fault, (change, fact) in BYTES.items():
        file.write_bytes(change(whole))
        with pytest.raises(CheckpointError) as refusal:
            put(run, network)
        assert str(file) in str(refusal.value), fault
        assert fact in str(refusal.value), fault


def config_with(**changes: object) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | {f"unet.{key}": value for key, value in changes.items()})


# What is done to the adapter's config in the file's metadata, and what the error has to name.
CONFIGS: dict[str, tuple[Callable[[str], str], str]] = {
    "no JSON": (lambda _: "{", "not JSON"),
    "a list": (lambda _: "[1]", "list"),
    "nested without end": (lambda _: "[" * 100_000, "nested"),
    "a rank that is no number": (config_with(r="4"), "rank"),
    "a rank without end": (config_with(r=2**40), "rank"),
    "an alpha that is none": (config_with(lora_alpha=float("nan")), "NaN"),
    "an absurd alpha": (config_with(lora_alpha=1e30), "alpha"),
    "a pattern for layers": (config_with(target_modules="(a+)+$"), "layers"),
    "a pattern for ranks": (config_with(rank_pattern={"(a+)+$": 4}), "layers"),
    "layers that it has not": (config_with(target_modules=["to_q", "nowhere"]), "to_"),
    "layers of another network": (config_with(target_modules=["nowhere"]), "nowhere"),
}


def test_a_config_that_no_adapter_was_trained_with_is_refused(network, run):
    file = run / WEIGHTS
    facts, tensors = metadata(file), load_file(file)
    for fault, (change, fact) in CONFIGS.items():
        save_file(tensors, file, facts | {METADATA: change(facts[METADATA])})
        with pytest.raises(CheckpointError, match=WEIGHTS) as refusal:
            put(run, network)
        assert fact in str(refusal.value), fault


def test_run_json_and_the_file_agree_or_the_run_is_refused(base, network, run):
    facts = json.loads((run / "run.json").read_text())
    told = adapter_facts(network_with_adapter(base))
    assert told == {"adapter": {"rank": RANK, "alpha": ALPHA, "layers": sorted(adapters_targets())}}
    (run / "run.json").write_text(json.dumps(facts | told))
    put(run, network)
    for key, value in (("rank", 8), ("alpha", 1.0), ("layers", ["to_q"])):
        (run / "run.json").write_text(json.dumps(facts | {"adapter": told["adapter"] | {key: value}}))
        with pytest.raises(CheckpointError, match=key):
            put(run, network)
    for damaged in ([1], {"rank": 4}, "lora", 7):
        (run / "run.json").write_text(json.dumps(facts | {"adapter": damaged}))
        with pytest.raises(CheckpointError, match="no config"):
            put(run, network)


def test_without_metadata_run_json_alone_says_what_the_adapter_is_and_without_both_it_is_refused(base, run):
    tensors = load_file(run / WEIGHTS)
    expected = get_peft_model_state_dict(load(run).unet)
    scaling = load(run).unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.scaling
    save_file(tensors, run / WEIGHTS)
    with pytest.raises(CheckpointError, match=METADATA):
        load(run)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | adapter_facts(network_with_adapter(base))))
    loaded = load(run).unet
    assert loaded.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.scaling == scaling
    for name, value in get_peft_model_state_dict(loaded).items():
        assert torch.equal(value, expected[name])


def test_an_adapter_that_changes_nothing_is_refused_but_as_a_start(base, run, tmp_path):
    file = run / WEIGHTS
    facts, tensors = metadata(file), load_file(file)
    every = readers(base, run, tmp_path / "out")
    for side, names in (("lora_A", ["load", "start_from"]), ("lora_", ["load", "start_from"]), ("lora_B", list(every))):
        zeros = {name: torch.zeros_like(value) if side in name else value for name, value in tensors.items()}
        save_file(zeros, file, facts)
        for reader in names:
            if reader == "start_from":
                every[reader]()
                continue
            with pytest.raises(CheckpointError, match="changes nothing") as refusal:
                every[reader]()
            assert str(file) in str(refusal.value), reader
    # In one layer up and down are zero on different ranks, and their product too; another layer adds something.
    save_file({name: value if "mid_block" in name else torch.zeros_like(value) for name, value in tensors.items()}, file, facts)
    load(run)
    crossed = {name: value.clone() for name, value in tensors.items()}
    for name, value in crossed.items():
        (value[: RANK // 2] if "lora_A" in name else value[:, RANK // 2 :]).zero_()
    save_file(crossed, file, facts)
    with pytest.raises(CheckpointError, match="changes nothing"):
        load(run)


@pytest.mark.parametrize("family", ["sd3", "pixart", "flux"])
def test_an_adapter_of_another_family_is_refused(family, run, tmp_path):
    other = write_micro(family, tmp_path / "other")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"base": str(other), "component": "transformer"}))
    for read in (lambda: load(run), lambda: export_run(run, tmp_path / "out"), lambda: export_run(run, tmp_path / "m", formats=["merged"])):
        with pytest.raises(CheckpointError, match=WEIGHTS):
            read()


def test_a_sound_adapter_is_what_stock_diffusers_reads(base, run):
    pipe = stock(base)
    pipe.load_lora_weights(run)
    loaded = load(run)
    assert loaded.get_list_adapters()["unet"] == ["default"]
    ours, theirs = (get_peft_model_state_dict(one.unet, adapter_name=name) for one, name in ((loaded, "default"), (pipe, "default_0")))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    loaded.unload_lora_weights()
    assert not loaded.get_list_adapters()


def test_a_read_adapter_says_where_each_part_comes_from(run):
    adapter = AdapterFile.read(run, "unet")
    assert adapter.file == run / WEIGHTS
    assert (adapter.config.r, adapter.config.lora_alpha) == (RANK, ALPHA)
    assert {f"unet.{name}" for name in adapter.plain()} == set(adapter.tensors)
