"""Switches for memory and speed change no result, and what a network cannot do is refused."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models import attention_dispatch
from safetensors.torch import load_file
from torch import nn

from diffalign.core.errors import ConfigError
from diffalign.methods.builders import speed
from diffalign.methods.config import TrainConfig
from diffalign.methods.packages import check_memory_format
from diffalign.methods.recipe import recipe_of
from diffalign.models.adapters import add_lora
from diffalign.models.backbones.table import load_backbone
from diffalign.models.trajectory_cache import network_facts
from diffalign.train.align import train
from diffalign.train.trainer import trainer_for
from tests.micro_models import write_micro

OLD = {"sdxl": UNet2DConditionModel, "pixart": PixArtTransformer2DModel, "sd3": SD3Transformer2DModel}


@pytest.fixture(scope="module")
def denoisers(tmp_path_factory):
    """Micro denoisers by family."""
    folder = tmp_path_factory.mktemp("models")
    kinds = OLD | {"flux": FluxTransformer2DModel}
    parts = {name: "unet" if kind is UNet2DConditionModel else "transformer" for name, kind in kinds.items()}
    return {name: kind.from_pretrained(write_micro(name, folder / name), subfolder=parts[name]) for name, kind in kinds.items()}


@pytest.fixture
def eager(monkeypatch):
    """Trace as `torch.compile` does, and run the traced graphs without the compiler, which takes minutes on a CPU."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: real(self, backend="eager"))
    return torch._dynamo.utils.counters


def config(**values):
    return TrainConfig(**{"dataset_name": "pairs", **values})


def run(micro_sd, pairs_file, output_dir, **values):
    """Train three steps; return (weights, log)."""
    options = {"pretrained_model_name_or_path": str(micro_sd), "dataset_name": str(pairs_file), "output_dir": str(output_dir)}
    # The step is linear in the gradient and beta small: see test_trainer.py.
    fixed = {"max_train_steps": 3, "train_batch_size": 4, "rank": 2, "adam_epsilon": 1.0, "learning_rate": 1.0, "beta": 10.0}
    own = config(**{**options, **fixed, **values})
    folder = trainer_for(own).fit()
    weights = load_file(next(file for pattern in ("*.safetensors", "unet/*.safetensors") for file in folder.glob(pattern)))
    return weights, [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


SWITCHES = {
    "channels-last": {"channels_last": True},
    "sdpa": {"attention_backend": "sdpa"},
    "compiled": {"torch_compile": True},
    "compiled-regional": {"torch_compile": "regional"},
    "compiled-saving": {"torch_compile": True, "gradient_checkpointing": True, "sequential_candidates": True},
    "compiled-full": {"torch_compile": True, "train_method": "full", "learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def plain(micro_sd, pairs_file, tmp_path_factory):
    """(weights, log) without a switch, by training method."""
    folder, full = tmp_path_factory.mktemp("plain"), {key: SWITCHES["compiled-full"][key] for key in ("train_method", "learning_rate")}
    return {name: run(micro_sd, pairs_file, folder / name, **own) for name, own in (("lora", {}), ("full", full))}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer reads it of a block's input
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_no_weight(name, plain, micro_sd, pairs_file, tmp_path, eager):
    switches = SWITCHES[name]
    weights, log = plain[switches.get("train_method", "lora")]
    again, same = run(micro_sd, pairs_file, tmp_path / "switched", **switches)
    assert weights.keys() == again.keys()
    assert max((weights[key] - again[key]).abs().max() for key in weights) <= 1e-6
    assert [row["loss"] for row in same] == pytest.approx([row["loss"] for row in log], abs=1e-6)
    assert log[-1]["grad_norm"] > 0
    assert bool(eager["stats"]) == bool(switches.get("torch_compile"))
    if name == "compiled":
        assert eager["stats"]["unique_graphs"] == 2, "the policy in training, and the reference without its adapter"
        assert not eager["graph_break"]


def test_the_compiler_rounds_as_the_reference_does(denoisers, monkeypatch):
    # Without it a bfloat16 run of the micro model on a CPU begins at a loss of 0.6884 with beta 50, where it is ln 2 by definition.
    given = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: given.append(options))
    speed.apply(config(torch_compile=True), denoisers["sdxl"])
    assert given == [{"options": {"emulate_precision_casts": True}}]


def test_a_transformer_has_no_channels():
    with pytest.raises(ConfigError, match=r"`channels_last` .*transformer"):
        check_memory_format(config(channels_last=True), "transformer")
    check_memory_format(config(channels_last=True), "unet")


def test_a_transformer_is_refused_channels_before_it_is_loaded(tmp_path, monkeypatch):
    folder = write_micro("flux", tmp_path / "flux")
    monkeypatch.setattr("diffalign.train.align.open_dataset", lambda *_, **__: pytest.fail("went on"))
    with pytest.raises(ConfigError, match="`channels_last` orders"):
        train(config(pretrained_model_name_or_path=str(folder), output_dir=str(tmp_path / "run"), channels_last=True))


def test_channels_last_reaches_the_convolutions(micro_sd):
    unet = UNet2DConditionModel.from_pretrained(micro_sd, subfolder="unet")
    speed.apply(config(channels_last=True), unet)
    kernels = [layer.weight for layer in unet.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", OLD)
def test_attention_outside_the_dispatcher_is_pytorchs_or_xformers(name, denoisers, monkeypatch):
    denoiser, asked = denoisers[name], []
    monkeypatch.setattr(type(denoiser), "enable_xformers_memory_efficient_attention", lambda self: asked.append(self))
    speed.apply(config(attention_backend="sdpa"), denoiser)
    assert not asked
    speed.apply(config(enable_xformers_memory_efficient_attention=True), denoiser)
    assert asked == [denoiser]
    with pytest.raises(ConfigError, match=f"`attention_backend` is 'flash'.*{type(denoiser).__name__}"):
        speed.apply(config(attention_backend="flash"), denoiser)


def test_attention_through_the_dispatcher_is_set_on_the_network_alone(denoisers):
    flux = denoisers["flux"]
    registry = attention_dispatch._AttentionBackendRegistry
    before = registry.get_active_backend()[0]
    speed.apply(config(attention_backend="_native_math"), flux)
    backends = {processor._attention_backend for processor in flux.attn_processors.values()}
    assert backends == {attention_dispatch.AttentionBackendName._NATIVE_MATH}
    assert registry.get_active_backend()[0] is before, "other pipelines in the process would change as well"


@pytest.mark.parametrize(("name", "backend"), [("flux", "flash"), ("flux", "xformers"), ("sdxl", "xformers")])
def test_a_backend_that_cannot_run_here_is_refused_in_our_words(name, backend, denoisers):
    with pytest.raises(ConfigError, match=f"`attention_backend` {backend}: "):
        speed.apply(config(attention_backend=backend), denoisers[name])


def test_nothing_asked_is_nothing_done(denoisers):
    unet = denoisers["sdxl"]
    before = {name: value.stride() for name, value in unet.state_dict().items()}
    speed.apply(config(), unet)
    assert not unet.is_gradient_checkpointing
    assert unet._compiled_call_impl is None
    assert {name: value.stride() for name, value in unet.state_dict().items()} == before
    assert speed.quantization_config(config()) is None


def test_gradient_checkpointing_is_switched_on_under_an_adapter(micro_sd):
    unet = UNet2DConditionModel.from_pretrained(micro_sd, subfolder="unet")
    add_lora(unet, targets=["to_q"], rank=2)
    speed.apply(config(gradient_checkpointing=True), unet)
    assert unet.is_gradient_checkpointing


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_nf4_computes_in_the_precision_of_the_run(precision, dtype, monkeypatch):
    with pytest.raises(ConfigError, match=r"`quantization: nf4` .*GPU"):
        speed.quantization_config(config(quantization="nf4"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(speed, "BitsAndBytesConfig", SimpleNamespace)
    assert vars(speed.quantization_config(config(quantization="nf4", mixed_precision=precision))) == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }


@pytest.mark.parametrize(("name", "kind"), [("int8", "Int8WeightOnlyConfig"), ("fp8", "Float8WeightOnlyConfig")])
def test_int8_and_fp8_are_torchaos_weights_alone(name, kind, monkeypatch):
    package, module = ModuleType("torchao"), ModuleType("torchao.quantization")
    for each in ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig"):
        setattr(module, each, type(each, (), {}))
    package.quantization = module  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.quantization", module)
    monkeypatch.setattr(speed, "TorchAoConfig", lambda given: type(given).__name__)
    assert speed.quantization_config(config(quantization=name)) == kind


def test_the_quantised_base_is_loaded_as_the_config_says(micro_sd, pairs_file, tmp_path, monkeypatch):
    from diffalign.methods.builders import image as build

    given = {}
    real = build.load_backbone
    monkeypatch.setattr(
        build, "load_backbone", lambda *args, **options: given.update(options) or real(*args, **options | {"quantization": None})
    )
    monkeypatch.setattr(speed, "quantization_config", lambda own: f"as {own.quantization}")
    own = config(pretrained_model_name_or_path=str(micro_sd), dataset_name=str(pairs_file), quantization="nf4", output_dir=str(tmp_path))
    build.backbone(own, recipe_of(own), torch.device("cpu"))
    assert given["quantization"] == "as nf4"


class Packed(torch.Tensor):
    """A weight that lets nobody reshape it, as torchao's."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.flatten:
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_quantised_network_is_told_from_the_one_it_was_made_of(micro_sd):
    model = load_backbone(str(micro_sd), torch.device("cpu"))
    plain = network_facts(model)
    assert network_facts(model) == plain
    layer = model.denoiser.get_submodule("mid_block.attentions.0.proj_in")
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    quantised = network_facts(model)
    assert quantised["denoiser"] != plain["denoiser"]
    assert quantised["schedule"] == plain["schedule"]


@pytest.mark.parametrize(("network", "block"), [("sd3", "JointTransformerBlock"), ("sdxl", "BasicTransformerBlock")])
def test_regional_compilation_is_of_each_repeated_block_alone(network, block, denoisers, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    speed.apply(config(torch_compile="regional"), denoisers[network])
    assert set(compiled) == {block}
    assert len(compiled) == sum(type(layer).__name__ == block for layer in denoisers[network].modules())


def test_a_network_without_repeated_blocks_is_refused_regional_compilation():
    with pytest.raises(ConfigError, match="a Linear names no repeated blocks; expected true"):
        speed.compile_network(config(torch_compile="regional"), nn.Linear(2, 2))
