"""A denoiser in a GGUF or fp8 file stays in its bits as the frozen base of a LoRA."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffalign.cli.main import main
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.infer.export.export import export_run
from diffalign.infer.load import load
from diffalign.methods.builders.dry_run import weights
from diffalign.methods.builders.meta_model import activations, outline
from diffalign.methods.checks import check
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.adapters import merge
from diffalign.models.backbones.table import load_pipeline
from diffalign.models.quantised import Packed, QuantisedLinear, numbers_of
from diffalign.train.trainer import trainer_for
from tests.micro_models import picture, write_micro
from tests.models.backbones.test_denoiser_file import write_denoiser
from tests.train.configs import small_config

KINDS = gguf.GGMLQuantizationType


def write_gguf(tensors, file: Path, kind=KINDS.Q8_0, folded=()) -> Path:
    """Write tensors as GGUF, in blocks where their rows fit; `folded` ones as one row more than they have."""
    writer = gguf.GGUFWriter(file, "test")
    for name, value in tensors.items():
        numbers = value.float().numpy()
        if name in folded:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(numbers.shape))
            numbers = numbers.reshape(-1, 32)
        blocks = numbers.ndim > 1 and numbers.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind) if blocks else numbers, raw_dtype=kind if blocks else None)
    close(writer)
    return file


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_fp8(tensors, file: Path, scaled=True, rows=False) -> Path:
    """Write tensors with weights of two axes in fp8, with ComfyUI's scales or without."""
    found = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)} if scaled else {}
    for name, value in tensors.items():
        if value.ndim != 2:
            found[name] = value
            continue
        most = value.abs().amax(dim=1, keepdim=True) if rows else value.abs().max()
        scale = most / 448 if scaled else torch.ones(())
        found[name] = (value / scale).to(torch.float8_e4m3fn)
        if scaled:
            found[name.removesuffix("weight") + ("weight_scale" if rows else "scale_weight")] = scale
            found[name.removesuffix("weight") + "scale_input"] = torch.ones(())
    save_file(found, file)
    return file


def rounded(tensors, kind):
    """Return tensors as a file of `kind` has them, by arithmetic that is not the package's own."""
    found = dict(tensors)
    for name, value in tensors.items():
        if kind == "fp8" and value.ndim == 2:
            found[name] = value.to(torch.float8_e4m3fn).float()
        if kind == "scaled" and value.ndim == 2:
            scale = value.abs().max() / 448
            found[name] = (value / scale).to(torch.float8_e4m3fn).float() * scale
        if kind == "rows" and value.ndim == 2:
            scale = value.abs().amax(dim=1, keepdim=True) / 448
            found[name] = (value / scale).to(torch.float8_e4m3fn).float() * scale
        if kind in ("Q8_0", "Q4_0") and value.ndim > 1 and value.shape[-1] % 32 == 0:
            blocks = gguf.quants.quantize(value.float().numpy(), KINDS[kind])
            found[name] = torch.from_numpy(gguf.quants.dequantize(blocks, KINDS[kind]))
    return found


def write(kind, tensors, file: Path) -> Path:
    if kind in ("Q8_0", "Q4_0"):
        return write_gguf(tensors, file.with_suffix(".gguf"), KINDS[kind])
    return write_fp8(tensors, file.with_suffix(".safetensors"), scaled=kind != "fp8", rows=kind == "rows")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(folder of a model, tensors of its denoiser in the published layout): a UNet, and a transformer of joined projections."""
    folder, found = tmp_path_factory.mktemp("bases"), {}
    for family in ("sd", "sd3"):
        base = write_micro(family, folder / family, **({"absent": ["text_encoder_3"]} if family == "sd3" else {}))
        found[family] = base, load_file(write_denoiser(base, folder / f"{family}.safetensors", ""))
    return found


def loaded(model, file):
    """Return (pipeline, its denoiser) with a file's denoiser."""
    pipe = load_pipeline(str(model), denoiser=file)
    return pipe, pipe.components.get("unet") or pipe.transformer


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "fp8", "scaled", "rows"])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_quantised_file_is_the_model_of_its_rounded_weights(bases, family, kind, tmp_path):
    base, tensors = bases[family]
    pipe, network = loaded(base, write(kind, tensors, tmp_path / "file"))
    plain = tmp_path / "rounded.safetensors"
    save_file({name: value.contiguous() for name, value in rounded(tensors, kind).items()}, plain)
    other, expected = loaded(base, plain)
    quantised = {name: layer for name, layer in network.named_modules() if isinstance(layer, QuantisedLinear)}
    assert len(quantised) >= 5  # of GGUF those whose rows fit its blocks
    for name, parameter in expected.named_parameters():
        layer = quantised.get(name.removesuffix(".weight"))
        here = layer.packed.numbers() if layer is not None and name.endswith(".weight") else network.get_parameter(name)
        torch.testing.assert_close(here, parameter, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(picture(pipe), picture(other), atol=1e-5)


def test_a_layer_multiplies_forward_and_backward_in_the_dtype_of_its_input_and_keeps_no_numbers():
    weight = torch.tensor([[1.0, -2.0], [0.5, 4.0], [3.0, 0.25]])  # which fp8 has
    layer = QuantisedLinear(Packed(weight.to(torch.float8_e4m3fn).view(torch.uint8), "F8_E4M3", torch.tensor([[2.0], [1.0], [0.5]])), None)
    x, kept = torch.tensor([[1.0, 3.0]], requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        y = layer(x)
    assert y.tolist() == [[2.0 * (1 - 6), 0.5 + 12, 0.5 * (3 + 0.75)]]
    y.sum().backward()
    assert x.grad.tolist() == [[2.0 + 0.5 + 1.5, -4.0 + 4.0 + 0.125]]
    assert kept == []
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["Q8_0", "scaled"])
def test_a_lora_on_a_quantised_base_trains_and_loads_on_the_stock_pipeline(bases, kind, pairs_file, tmp_path):
    base, tensors = bases["sd"]
    file = write(kind, tensors, tmp_path / "file")
    config = small_config(base, pairs_file, tmp_path / "run", denoiser=str(file), max_train_steps=2, cache="off", train_batch_size=2)
    check(config)
    trainer = trainer_for(config)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    run = trainer.fit()
    after = trainer.network.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    pipe, network = loaded(base, file)
    pipe.load_lora_weights(run)  # as in diffusers, on the same quantised base
    drawn = picture(load(run))
    np.testing.assert_array_equal(picture(pipe), drawn)
    assert np.abs(picture(load_pipeline(str(base), denoiser=file)) - drawn).max() > 0
    if kind == "Q8_0":
        with pytest.raises(ConfigError, match=r"file.*quantised.*merged"):
            export_run(run, tmp_path / "merged", formats=["merged"])
        assert "GGUFQuantizationConfig" in (export_run(run, tmp_path / "export") / "README.md").read_text()
        with pytest.raises(CheckpointError, match="quantised"):
            merge(network)


def test_what_would_change_quantised_weights_is_refused_before_they_are_read(bases, pairs_file, tmp_path):
    base, tensors = bases["sd"]
    file = write("Q8_0", tensors, tmp_path / "file")
    for changes, fact in (
        ({"train_method": "full"}, "train_method"),
        ({"train_method": "dora"}, "dora"),
        ({"train_method": "controlnet"}, "controlnet"),
        ({"base_lora": [str(tmp_path / "style.safetensors")]}, "base_lora"),
        ({"quantization": "int8"}, "quantization"),
    ):
        (tmp_path / "style.safetensors").touch()
        with pytest.raises(ConfigError, match=fact):
            check(small_config(base, pairs_file, tmp_path / "run", denoiser=str(file), **changes), installed=False)


def test_a_file_that_is_not_read_is_refused_for_what_it_is(bases, pairs_file, tmp_path):
    base, tensors = bases["sd"]
    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    writer = gguf.GGUFWriter(tmp_path / "iq.gguf", "test")
    writer.add_tensor(name, np.zeros((2, 66), np.uint8), raw_dtype=KINDS.IQ2_XXS)
    close(writer)
    (tmp_path / "empty.gguf").touch()
    write_gguf({key: value for key, value in tensors.items() if key != name}, tmp_path / "part.gguf")
    write_gguf(bases["sd3"][1], tmp_path / "sd3.gguf")
    eight = load_file(write_fp8(tensors, tmp_path / "eight.safetensors"))
    save_file(eight | {name: torch.zeros(tensors[name].shape, dtype=torch.int8)}, tmp_path / "int8.safetensors")
    save_file(eight | {name.replace("weight", "scale_weight"): torch.ones(3)}, tmp_path / "blocks.safetensors")
    cases = {
        "iq.gguf": "IQ2_XXS",
        "empty.gguf": "GGUF",
        "part.gguf": "lacks",
        "sd3.gguf": "looks like.*UNet2DConditionModel",
        "int8.safetensors": "I8",
        "blocks.safetensors": "scales of shape",
    }
    for file, fact in cases.items():
        with pytest.raises(CheckpointError, match=fact) as error:
            check(small_config(base, pairs_file, tmp_path / "run", denoiser=str(tmp_path / file)))
        assert file in str(error.value)


def test_folded_tensors_of_gguf_are_unfolded(bases, tmp_path):
    base, tensors = bases["sd"]
    name = "out.2.weight"
    file = write_gguf(tensors, tmp_path / "folded.gguf", folded=[name])
    expected = gguf.quants.dequantize(gguf.quants.quantize(tensors[name].float().numpy().reshape(-1, 32), KINDS.Q8_0), KINDS.Q8_0)
    np.testing.assert_array_equal(loaded(base, file)[1].conv_out.weight.numpy(), expected.reshape(tensors[name].shape))


def test_a_dry_run_counts_the_bytes_of_the_file(bases, pairs_file, tmp_path, capsys):
    base, tensors = bases["sd3"]
    file = write("Q4_0", tensors, tmp_path / "file")
    flags = {"pretrained_model_name_or_path": base, "dataset_name": pairs_file, "denoiser": file, "dry_run": "true"}
    assert main(["train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]) == 0
    assert "Q4_0" in capsys.readouterr().out
    own = TrainConfig(pretrained_model_name_or_path=str(base), dataset_name="pairs", denoiser=str(file), rank=2)
    drawn = outline(own, recipe_of(own), torch.device("cpu"))
    network = loaded(base, file)[1]
    rows = dict(weights(own, recipe_of(own), drawn.model.denoiser))
    assert next(iter(rows.values())) == sum(
        tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers())
    )
    plain = TrainConfig(pretrained_model_name_or_path=str(base), dataset_name="pairs", rank=2)
    count = sum(p.numel() for p in outline(plain, recipe_of(plain), torch.device("cpu")).model.denoiser.parameters())
    assert numbers_of(drawn.model.denoiser) == count
    assert activations(own, drawn, 2) <= activations(plain, outline(plain, recipe_of(plain), torch.device("cpu")), 2)
