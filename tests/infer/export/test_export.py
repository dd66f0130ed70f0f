"""What a run is exported as changes weights and pictures as the run itself does, in the programs that it is meant for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.infer.export.export import MARK, export_run
from diffalign.infer.load import load
from diffalign.models.adapter_files import WEIGHTS
from diffalign.models.adapters import save_difference
from tests.infer.runs import ALPHA, RANK, weights, write_run
from tests.layouts import comfyui_paths, merged_by_comfyui, random_checkpoint, to_diffusers
from tests.micro_models import picture, stock, write_micro

EVERYTHING = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
FORMATS = ["diffusers", "comfyui", "merged"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


def comfyui_file(folder):
    (path,) = folder.glob("*_comfyui.safetensors")
    return path


def metadata(path):
    with safe_open(path, "pt") as content:
        return content.metadata()


def merged_by_hand(state, tensors, component):
    """Return W + alpha / rank * B @ A of a file in diffusers' format, with the alpha that the run was trained with."""
    result = dict(state)
    for name, up in tensors.items():
        if name.endswith(".lora_B.weight"):
            layer = name.removeprefix(f"{component}.").removesuffix(".lora_B.weight")
            change = ALPHA / RANK * up.flatten(1) @ tensors[name.replace("lora_B", "lora_A")].flatten(1)
            result[f"{layer}.weight"] = state[f"{layer}.weight"] + change.reshape(state[f"{layer}.weight"].shape)
    return result


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart"])
def test_all_formats_change_the_weights_alike(family, tmp_path):
    model = write_micro(family, tmp_path / "model")
    pipe = stock(model)
    component = "unet" if "unet" in pipe.components else "transformer"
    network = getattr(pipe, component)
    checkpoint = random_checkpoint(family, network.config)
    network.load_state_dict(to_diffusers(family, checkpoint, network.config))
    network.save_pretrained(model / component)
    targets = [*EVERYTHING, "proj_in", "conv1"] if component == "unet" else EVERYTHING
    run = write_run(tmp_path / "run", model, targets=targets)
    out = export_run(run, tmp_path / "out", formats=FORMATS)
    assert not [
        path for path in out.rglob("*.*") if str(tmp_path).encode() in path.read_bytes()
    ]  # where files lie here is no one's business

    expected = weights(getattr(load(run), component))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    by_hand = merged_by_hand(before, load_file(out / WEIGHTS), component)
    paths = comfyui_paths(family, network.config)
    by_comfyui = to_diffusers(family, merged_by_comfyui(checkpoint, load_file(comfyui_file(out)), paths), network.config)
    merged = getattr(stock(out), component).state_dict()
    for name, weight in expected.items():
        for found in (by_hand, by_comfyui, merged):
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert max((expected[name] - before[name]).abs().max() for name in before) > 0.1


PICTURE, PROMPT, SINGLE = "lora_unet_double_blocks_0_img", "lora_unet_double_blocks_0_txt", "lora_unet_single_blocks_0"
DOUBLE_LAYERS, SINGLE_LAYERS = "transformer_blocks.0", "single_transformer_blocks.0"
# Each fused module of the published Flux, and which layers its rows are, from the top.
ROWS = {
    f"{PICTURE}_attn_qkv": [f"{DOUBLE_LAYERS}.attn.to_{name}" for name in "qkv"],
    f"{PROMPT}_attn_qkv": [f"{DOUBLE_LAYERS}.attn.add_{name}_proj" for name in "qkv"],
    f"{SINGLE}_linear1": [*(f"{SINGLE_LAYERS}.attn.to_{name}" for name in "qkv"), f"{SINGLE_LAYERS}.proj_mlp"],
    f"{PICTURE}_attn_proj": [f"{DOUBLE_LAYERS}.attn.to_out.0"],
    f"{PROMPT}_attn_proj": [f"{DOUBLE_LAYERS}.attn.to_add_out"],
    f"{PICTURE}_mlp_0": [f"{DOUBLE_LAYERS}.ff.net.0.proj"],
    f"{PICTURE}_mlp_2": [f"{DOUBLE_LAYERS}.ff.net.2"],
    f"{SINGLE}_linear2": [f"{SINGLE_LAYERS}.proj_out"],
}


def test_all_formats_change_a_flux_alike_also_in_the_fused_layers_of_its_single_blocks(tmp_path):
    model = write_micro("flux", tmp_path / "model")
    before = stock(model).transformer.state_dict()
    targets = [layer for layers in ROWS.values() for layer in layers]
    run = write_run(tmp_path / "run", model, targets=targets)
    out = export_run(run, tmp_path / "out", formats=FORMATS)
    file = load_file(comfyui_file(out))
    assert {key.split(".")[0] for key in file} == set(ROWS)

    expected, by_comfyui = weights(load(run).transformer), dict(before)
    for key, layers in ROWS.items():
        parts = [before[f"{layer}.weight"] for layer in layers]
        down, up = (file[f"{key}.lora_{side}.weight"] for side in ("down", "up"))
        changed = torch.cat(parts) + file[f"{key}.alpha"] / len(down) * up @ down
        by_comfyui |= dict(zip((f"{layer}.weight" for layer in layers), changed.split([len(part) for part in parts]), strict=True))
    by_hand = merged_by_hand(before, load_file(out / WEIGHTS), "transformer")
    merged = stock(out).transformer.state_dict()
    for name, weight in expected.items():
        for found in (by_hand, by_comfyui, merged):
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert min((expected[f"{layer}.weight"] - before[f"{layer}.weight"]).abs().max() for layer in targets) > 0.1


@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl", "flux"])
def test_stock_diffusers_loads_both_lora_files_as_the_run(family, tmp_path):
    model = write_micro(family, tmp_path / "model")
    component = "transformer" if family == "flux" else "unet"
    # diffusers splits the fused layer of a single block of Flux at its true width alone, which a micro model does not have.
    double = [f"transformer_blocks.0.{layer}" for layer in (*(f"attn.to_{name}" for name in "qkv"), "attn.add_k_proj", "ff.net.2")]
    run = write_run(tmp_path / "run", model, targets=[*double, "norm.linear"] if family == "flux" else EVERYTHING)
    out = export_run(run, tmp_path / "out")
    expected, plain = picture(load(run)), picture(stock(model))
    assert np.abs(expected - plain).max() > 1e-3
    state = weights(getattr(load(run), component))
    for file in (WEIGHTS, comfyui_file(out).name):
        pipe = stock(model)
        pipe.load_lora_weights(out, weight_name=file)
        np.testing.assert_allclose(picture(pipe), expected, atol=1e-5)
        for name, weight in weights(getattr(pipe, component)).items():
            torch.testing.assert_close(weight, state[name], atol=1e-5, rtol=0)


def test_the_files_say_what_they_are(base, tmp_path):
    out = export_run(write_run(tmp_path / "run", base), tmp_path / "out", name="mine")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", MARK, "mine_comfyui.safetensors", WEIGHTS]
    stock_facts, comfyui = metadata(out / WEIGHTS), metadata(out / "mine_comfyui.safetensors")
    assert json.loads(stock_facts["lora_adapter_metadata"])["unet.lora_alpha"] == ALPHA
    for facts in (stock_facts, comfyui):
        assert facts["format"] == "pt"
        assert (facts["base"], facts["method"]) == ("micro-sd", "diffusion_dpo")
        assert facts["modelspec.title"] == "mine"
        assert facts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (comfyui["ss_network_dim"], comfyui["ss_network_alpha"]) == ("4", "6")
    assert (comfyui["ss_base_model_version"], comfyui["ss_v2"]) == ("sd_v1", "False")
    alphas = {value.item() for name, value in load_file(out / "mine_comfyui.safetensors").items() if name.endswith(".alpha")}
    assert alphas == {ALPHA}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_merged_weights_are_written_in_the_wanted_precision(base, tmp_path, dtype):
    run = write_run(tmp_path / "run", base)
    out = export_run(run, tmp_path / "out", formats=["merged"], dtype=dtype)
    found = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in found.values()} == {{"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]}
    for name, weight in weights(load(run).unet).items():
        torch.testing.assert_close(found[name].float(), weight, atol=1e-2, rtol=1e-2)


def test_weights_that_overflow_when_merged_are_refused(base, tmp_path):
    run = write_run(tmp_path / "run", base)
    tensors = {name: value * 1e3 for name, value in load_file(run / WEIGHTS).items()}
    save_file(tensors, run / WEIGHTS, metadata=metadata(run / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"torch\.float16.*bf16"):
        export_run(run, tmp_path / "out", formats=["merged"], dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_a_dora_is_refused_for_comfyui_and_merged_as_it_draws(base, tmp_path):
    run = write_run(tmp_path / "run", base, train_method="dora")
    with pytest.raises(ConfigError, match=r"DoRA.*--formats diffusers merged"):
        export_run(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    out = export_run(run, tmp_path / "out", formats=["merged", "diffusers"])
    expected, pipe = picture(load(run)), stock(base)
    np.testing.assert_allclose(picture(stock(out)), expected, atol=1e-4)
    pipe.load_lora_weights(out)
    np.testing.assert_allclose(picture(pipe), expected, atol=1e-6)
    assert np.abs(expected - picture(stock(base))).max() > 1e-3


def test_a_full_fine_tune_is_a_pipeline_and_no_lora(base, tmp_path):
    run = write_run(tmp_path / "run", base, train_method="full")
    for form in ("diffusers", "comfyui"):
        with pytest.raises(ConfigError, match=f"all weights.*`{form}`.*--formats merged"):
            export_run(run, tmp_path / "out", formats=[form])
    out = export_run(run, tmp_path / "out")
    np.testing.assert_array_equal(picture(stock(out)), picture(load(run)))


@pytest.mark.parametrize("method", ["diffusion_npo", "self_npo"])
def test_a_negative_adapter_is_exported_with_a_warning_and_never_merged(base, tmp_path, method):
    run = write_run(tmp_path / "run", base, method=method)
    with pytest.raises(ConfigError, match=f"{method} is not merged"):
        export_run(run, tmp_path / "out", formats=FORMATS)
    out = export_run(run, tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "**This adapter is for the unconditional branch of guidance alone**" in card
    assert "with negative_guidance(pipe," in card
    assert "unconditional branch" in metadata(comfyui_file(out))["modelspec.usage_hint"]


def test_the_low_rank_part_of_a_full_negative_run_is_exported_with_its_own_ranks(base, tmp_path):
    run = write_run(tmp_path / "run", base, method="self_npo", train_method="full")
    pipe, tuned = stock(base), type(stock(base).unet).from_pretrained(run / "unet")
    save_difference(pipe, pipe.unet, tuned, run, component="unet", rank=6)
    out = export_run(run, tmp_path / "out")
    assert metadata(comfyui_file(out))["ss_network_dim"] == "Dynamic"
    pipe.load_lora_weights(out, weight_name=WEIGHTS)
    expected = weights(pipe.unet)
    other = stock(base)
    other.load_lora_weights(out, weight_name=comfyui_file(out).name)
    for name, weight in weights(other.unet).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)


def test_the_files_of_a_base_that_predicts_v_say_so(tmp_path):
    for kind, options, expected in (
        ("sd", {}, "epsilon"),
        ("sd2", {}, "v"),
        ("sdxl", {"prediction_type": "v_prediction"}, "v"),
        ("sd3", {}, None),
    ):
        model = write_micro(kind, tmp_path / f"{kind}-model", **options)
        out = export_run(write_run(tmp_path / f"{kind}-run", model), tmp_path / f"{kind}-out")
        for file in (out / WEIGHTS, comfyui_file(out)):
            assert metadata(file).get("modelspec.prediction_type") == expected, (kind, file.name)
        assert metadata(comfyui_file(out))["ss_zero_terminal_snr"] == str(kind == "sd2"), kind
