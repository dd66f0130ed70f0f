"""LoRA files of other programs, written by their key rules, change a model's weights as each program's own arithmetic does."""

from __future__ import annotations

import copy
import functools
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ChromaTransformer2DModel, FluxTransformer2DModel, Lumina2Transformer2DModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.models.adapter_files import PEFT_PREFIX, PEFT_WEIGHTS
from diffalign.models.adapters import add_adapter, merge, peft_files
from diffalign.models.backbones.base_lora import BaseLora, fuse
from diffalign.models.backbones.lora_layouts import read_lora
from diffalign.models.backbones.table import BACKBONES, lora_adapters
from tests.each import each
from tests.layouts import FLUX, published, random_checkpoint, to_diffusers
from tests.micro_models import MAKERS

COMPONENTS = {family: "unet" if family in ("sd", "sdxl") else "transformer" for family in BACKBONES}


def places(family: str, network: Any) -> Callable[[str], Any]:
    return lambda layer: BACKBONES[family].place(layer, network.config)


@dataclass(frozen=True)
class Part:
    """A module's update: up @ down, which counts alpha / rank times, or once without an alpha."""

    down: Tensor
    up: Tensor
    alpha: float | None

    def change(self) -> Tensor:
        scale = 1.0 if self.alpha is None else self.alpha / len(self.down)
        return scale * torch.einsum("or,ri...->oi...", self.up.flatten(1), self.down)


def parts_for(shapes: Mapping[str, tuple[int, ...]], how: str) -> dict[str, Part]:
    """Return a random update for each module: of one rank and alpha, without alphas, or of mixed ranks, alphas and lacks of one."""
    generator, parts = torch.Generator().manual_seed(2), {}
    for number, (module, shape) in enumerate(sorted(shapes.items())):
        rank = 2 + number % 3 if how == "mixed" else 4
        alpha = {"plain": 2.0, "none": None, "mixed": (1.0, None, 6.0, 0.5)[number % 4]}[how]
        down = 0.1 * torch.randn(rank, *shape[1:], generator=generator)
        up = 0.1 * torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
        parts[module] = Part(down, up, alpha)
    return parts


def tensors_of(parts: Mapping[str, Part], name: Callable[[str], str], halves: tuple[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a file whose modules are called `name(module)`."""
    tensors = {}
    for module, part in parts.items():
        tensors |= {f"{name(module)}.{halves[0]}.weight": part.down, f"{name(module)}.{halves[1]}.weight": part.up}
        tensors |= {} if part.alpha is None else {f"{name(module)}.alpha": torch.tensor(part.alpha)}
    return {name: value.contiguous() for name, value in tensors.items()}


def kohya(module: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}"


def comfyui(module: str) -> str:
    return f"diffusion_model.{module}"


def lycoris(module: str) -> str:
    return f"lycoris_{module.replace('.', '_')}"


def diffusers(module: str) -> str:
    return f"transformer.{module}"


def peft(module: str) -> str:
    return f"{PEFT_PREFIX}{module}"


def denoiser(family: str) -> Any:
    torch.manual_seed(0)
    return getattr(MAKERS[family](), COMPONENTS[family])


@functools.cache
def built(family: str) -> Any:
    """Return a denoiser that tests give weights of their own, and leave without an adapter."""
    return denoiser(family)


@functools.cache
def filled(family: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a denoiser with the random weights of a checkpoint in the published layout, and that checkpoint."""
    network = built(family)
    checkpoint = random_checkpoint(family, dict(network.config))
    network.load_state_dict(to_diffusers(family, checkpoint, dict(network.config)))
    return network, checkpoint


def grouped(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1


def weights_with(network: Any, file: Path, family: str) -> dict[str, Tensor]:
    """Return the weights of a network with a file's adapter merged."""
    network, component = copy.deepcopy(network), COMPONENTS[family]
    add_adapter(network, read_lora(file, {component: network}, component, places(family, network))[component])
    merge(network)
    return network.state_dict()


UP_DOWN, A_B = ("lora_down", "lora_up"), ("lora_A", "lora_B")
# Family, whether modules are those of the published layout (or diffusers' own), and the names of the file.
LAYOUTS: dict[str, tuple[str, bool, Callable[[str], str], tuple[str, str]]] = {
    "kohya, SD 1 and 2": ("sd", False, kohya, UP_DOWN),
    "kohya, SDXL": ("sdxl", True, kohya, UP_DOWN),
    "kohya, SD3": ("sd3", True, kohya, UP_DOWN),
    "ComfyUI, SDXL": ("sdxl", True, comfyui, A_B),
    "ComfyUI, SD3": ("sd3", True, comfyui, A_B),
    "ComfyUI, PixArt": ("pixart", True, comfyui, A_B),
    "ComfyUI, Z-Image": ("z_image", True, comfyui, A_B),
    "ai-toolkit, Z-Image": ("z_image", False, comfyui, A_B),
    "diffusers, SD 1": ("sd", False, lambda module: f"unet.{module}", A_B),
    "diffusers, SD3": ("sd3", False, lambda module: f"transformer.{module}", A_B),
    "diffusers without peft, SD 1": ("sd", False, lambda module: f"unet.{module}", ("lora.down", "lora.up")),
}
# Of later families, in the layouts that diffusers' converters and ComfyUI's tables of keys know for each.
A_B_DEFAULT = ("lora_A.default", "lora_B.default")
LATER: dict[str, tuple[str, bool, Callable[[str], str], tuple[str, str]]] = {
    "musubi-tuner, Qwen-Image": ("qwen_image", False, kohya, UP_DOWN),
    "ai-toolkit, Qwen-Image": ("qwen_image", False, comfyui, A_B),
    "Qwen-Image-Lightning": ("qwen_image", False, str, UP_DOWN),
    "DiffSynth, Qwen-Image": ("qwen_image", False, str, A_B_DEFAULT),
    "SimpleTuner, Qwen-Image": ("qwen_image", False, lycoris, UP_DOWN),
    "diffusers, Qwen-Image": ("qwen_image", False, diffusers, A_B),
    "diffusers, CogView4": ("cogview4", False, diffusers, A_B),
    "peft, CogView4": ("cogview4", False, peft, A_B),
    "musubi-tuner, FLUX.2": ("flux2", True, kohya, UP_DOWN),
    "ai-toolkit, FLUX.2": ("flux2", True, comfyui, A_B),
    "ComfyUI with diffusers' blocks, FLUX.2": ("flux2", False, comfyui, A_B),
    "ComfyUI with blocks cut short, FLUX.2": ("flux2", False, lambda name: comfyui(re.sub("^transformer_", "sformer_", name)), UP_DOWN),
    "diffusers, FLUX.2": ("flux2", False, diffusers, A_B),
    "kohya, SANA": ("sana", True, kohya, UP_DOWN),
    "diffusers, SANA": ("sana", False, diffusers, A_B),
    "ComfyUI, Krea 2": ("krea2", True, comfyui, A_B),
    "ai-toolkit, Krea 2": ("krea2", True, peft, A_B),
    "diffusers, Krea 2": ("krea2", False, diffusers, A_B),
    "ComfyUI, ERNIE-Image": ("ernie_image", False, comfyui, A_B),
    "diffusers, ERNIE-Image": ("ernie_image", False, diffusers, A_B),
}


# A file that has one alpha, or none, is read apart from one that has some: of each way to name what it holds.
APART = ("kohya, SDXL", "ComfyUI, SD3", "diffusers, SD 1", "diffusers without peft, SD 1")


@each([*(f"{layout}; {how}" for layout in APART for how in ("plain", "none")), *(f"{layout}; mixed" for layout in LAYOUTS | LATER)])
def test_a_file_counts_as_much_as_in_the_program_that_wrote_it(case):
    layout, how = case.split("; ")
    family, original, name, halves = (LAYOUTS | LATER)[layout]
    network, checkpoint = filled(family)
    config = dict(network.config)
    before = checkpoint if original else network.state_dict()
    layers = [module for module, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d) and not grouped(layer)]
    modules = [key.removesuffix(".weight") for key, value in before.items() if key.endswith(".weight") and value.dim() > 1]
    modules = [module for module in modules if "depth_conv" not in module]  # of SANA: peft has no adapters for grouped convolutions
    parts = parts_for({module: tuple(before[f"{module}.weight"].shape) for module in (modules if original else layers)}, how)
    after = before | {f"{module}.weight": before[f"{module}.weight"] + part.change() for module, part in parts.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        save_file(tensors_of(parts, name, halves), file)
        merged = weights_with(network, file, family)
    for key, value in (to_diffusers(family, after, config) if original else after).items():
        torch.testing.assert_close(merged[key], value, atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert max(float((merged[key] - value).abs().max()) for key, value in network.state_dict().items()) > 0.01


CHROMA = {"num_layers": 1, "num_single_layers": 1, "approximator_layers": 1}
LUMINA2 = {"num_layers": 1, "num_refiner_layers": 1}
# Of families whose converters know no other widths than the true ones: network, config, whether modules are the published ones, names.
WIDE: dict[str, tuple[str, Any, dict[str, Any], bool, Callable[[str], str], tuple[str, str]]] = {
    "kohya, Flux": ("flux", FluxTransformer2DModel, FLUX, True, kohya, UP_DOWN),
    "kohya, Chroma": ("chroma", ChromaTransformer2DModel, CHROMA, True, kohya, UP_DOWN),
    "ai-toolkit, Chroma": ("chroma", ChromaTransformer2DModel, CHROMA, True, comfyui, A_B),
    "diffusers, Chroma": ("chroma", ChromaTransformer2DModel, CHROMA, False, diffusers, A_B),
    "kohya, Lumina 2": ("lumina2", Lumina2Transformer2DModel, LUMINA2, True, kohya, UP_DOWN),
    "ComfyUI, Lumina 2": ("lumina2", Lumina2Transformer2DModel, LUMINA2, True, comfyui, A_B),
    "ComfyUI without its prefix, Lumina 2": ("lumina2", Lumina2Transformer2DModel, LUMINA2, True, diffusers, A_B),
    "LyCORIS, Lumina 2": ("lumina2", Lumina2Transformer2DModel, LUMINA2, True, lycoris, UP_DOWN),
    "diffusers, Lumina 2": ("lumina2", Lumina2Transformer2DModel, LUMINA2, False, diffusers, A_B),
}


@each([*(f"kohya, Flux; {how}" for how in ("plain", "none")), *(f"{layout}; mixed" for layout in WIDE)])
def test_fused_layers_of_the_true_width_come_apart(case):
    """But with four inputs to a layer."""
    layout, how = case.split("; ")
    family, kind, config, original, name, halves = WIDE[layout]
    with torch.device("meta"):
        network = kind(**config)
    config = dict(network.config)
    shapes = {key: (rows[0], 4) if len(rows) == 2 else rows for key, rows in published(family, config).items()}
    zeros = {key: torch.zeros(shape) for key, shape in shapes.items()}
    if not original:
        zeros = to_diffusers(family, zeros, config)
    parts = parts_for({key.removesuffix(".weight"): tuple(value.shape) for key, value in zeros.items() if value.dim() == 2}, how)
    expected = zeros | {f"{module}.weight": part.change() for module, part in parts.items()}
    expected = to_diffusers(family, expected, config) if original else expected
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        save_file(tensors_of(parts, name, halves), file)
        adapter = read_lora(file, {"transformer": network}, "transformer", places(family, network))["transformer"]
    changes = {name: value for name, value in expected.items() if value.dim() == 2}
    assert len(changes) == len(adapter.tensors) / 2
    for name, change in changes.items():
        layer = name.removesuffix(".weight")
        down, up = (adapter.tensors[f"transformer.{layer}.lora_{half}.weight"] for half in "AB")
        alpha = (adapter.config.alpha_pattern or {}).get(f"^{layer}", adapter.config.lora_alpha)
        torch.testing.assert_close(alpha / len(down) * up @ down, change, atol=1e-5, rtol=0)


def clip_layers(encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the layers of a CLIP text encoder by the names that all programs have for them, with their shapes."""
    linear = {name.removeprefix("text_model."): layer for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)}
    return {f"text_model.{name}": tuple(layer.weight.shape) for name, layer in linear.items() if name.startswith("encoder.")}


TEXT_LAYOUTS: dict[str, tuple[str, dict[str, Callable[[str], str]], tuple[str, str]]] = {
    "kohya, SD 1 and 2": ("sd", {"text_encoder": lambda name: f"lora_te_{name.replace('.', '_')}"}, UP_DOWN),
    "kohya, SDXL": (
        "sdxl",
        {f"text_encoder{end}": lambda name, te=te: f"lora_{te}_{name.replace('.', '_')}" for te, end in (("te1", ""), ("te2", "_2"))},
        UP_DOWN,
    ),
    "diffusers, SDXL": ("sdxl", {part: lambda name, part=part: f"{part}.{name}" for part in ("text_encoder", "text_encoder_2")}, A_B),
}


@each(TEXT_LAYOUTS)
def test_layers_of_text_encoders_count_as_much_as_stock_diffusers_says(layout):
    family, names, halves = TEXT_LAYOUTS[layout]
    pipe = MAKERS[family]()
    network = pipe.unet
    tensors = tensors_of(
        parts_for({"mid_block.attentions.0.proj_in": network.mid_block.attentions[0].proj_in.weight.shape}, "plain"), kohya, UP_DOWN
    )
    if halves == A_B:
        tensors = {
            name.replace("lora_unet_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"): value
            for name, value in tensors.items()
        }
        tensors = {name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for name, value in tensors.items()}
    expected = {}
    for part, name in names.items():
        parts = parts_for(clip_layers(getattr(pipe, part)), "none" if halves == A_B else "mixed")
        tensors |= tensors_of(parts, name, halves)
        for layer, update in parts.items():
            expected[part, layer] = update.change()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        save_file(tensors, file)
        found = lora_adapters(file, pipe)
    assert found.keys() == {"unet", *names}
    for part in names:
        encoder = getattr(pipe, part)
        before = {name.removeprefix("text_model."): value.clone() for name, value in encoder.state_dict().items()}
        fuse(encoder, found[part], strength=0.5)
        after = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
        for (one, layer), change in expected.items():
            if one == part:
                name = f"{layer.removeprefix('text_model.')}.weight"
                torch.testing.assert_close(after[name], before[name] + 0.5 * change, atol=1e-5, rtol=0)


def test_the_two_files_of_peft_are_read_with_their_alpha(tmp_path):
    network = denoiser("pixart")
    layers = {name: layer.weight.shape for name, layer in network.named_modules() if name.endswith("attn1.to_q")}
    parts = parts_for(layers, "none")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["attn1.to_q"])
    peft_files(tmp_path, {name.removeprefix(PEFT_PREFIX): value for name, value in tensors_of(parts, str, A_B).items()}, config)
    assert (tmp_path / PEFT_WEIGHTS).is_file()
    merged, before = weights_with(network, tmp_path, "pixart"), network.state_dict()
    for layer, part in parts.items():
        torch.testing.assert_close(merged[f"{layer}.weight"], before[f"{layer}.weight"] + 6 / 4 * part.up @ part.down, atol=1e-5, rtol=0)


def test_the_ranks_and_alphas_of_a_file_are_those_of_its_adapter(tmp_path):
    network = denoiser("sd")
    layers = {name: tuple(layer.weight.shape) for name, layer in network.named_modules() if name.endswith(("to_q", "to_k"))}
    parts = parts_for(layers, "mixed")
    save_file(tensors_of(parts, kohya, UP_DOWN), tmp_path / "lora.safetensors")
    add_adapter(network, read_lora(tmp_path / "lora.safetensors", {"unet": network}, "unet", places("sd", network))["unet"])
    assert network.peft_config["default"].target_modules == {"to_q", "to_k"}
    for layer, part in parts.items():
        module: Any = network.get_submodule(layer)
        assert module.r["default"] == len(part.down)
        assert module.lora_alpha["default"] == (len(part.down) if part.alpha is None else part.alpha)
        assert module.lora_A["default"].weight.requires_grad
        assert not module.base_layer.weight.requires_grad


def sound(family: str = "sd") -> dict[str, Tensor]:
    layers = {name: tuple(layer.weight.shape) for name, layer in denoiser(family).named_modules() if name.endswith("to_q")}
    return tensors_of(parts_for(layers, "plain"), kohya, UP_DOWN)


def first(tensors: Mapping[str, Tensor], end: str) -> str:
    return next(name for name in tensors if name.endswith(end))


# What is done to a sound file, and the facts that the error holds.
FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], list[str]]] = {
    "LoHa": (lambda t: t | {"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, ["LoHa", "lora_unet_x.hada_w1_a"]),
    "LoKr": (lambda t: t | {"lora_unet_x.lokr_w1": torch.ones(2, 2)}, ["LoKr", "lora_unet_x.lokr_w1"]),
    "LoCon with a core": (lambda t: t | {"lora_unet_x.lora_mid.weight": torch.ones(2, 2)}, ["LoCon", "lora_unet_x.lora_mid.weight"]),
    "DoRA of others": (lambda t: t | {"lora_unet_x.dora_scale": torch.ones(2)}, ["DoRA", "lora_unet_x.dora_scale"]),
    "half": (lambda t: {name: value for name, value in t.items() if name != first(t, "lora_up.weight")}, ["lora_down.weight", "half"]),
    "unknown module": (
        lambda t: {name.replace("attn1", "attn9"): value for name, value in t.items()},
        ["kohya", "attn9", "UNet2DConditionModel"],
    ),
    "no LoRA": (lambda t: {"model.weight": torch.ones(2)}, ["model.weight"]),
    "alpha of zero": (lambda t: t | {first(t, ".alpha"): torch.tensor(0.0)}, [".alpha", "0"]),
    "idle": (lambda t: {name: value * ("lora_up" not in name) for name, value in t.items()}, ["changes nothing"]),
    "another width": (lambda t: {name: value[:, :3] if "lora_down" in name else value for name, value in t.items()}, ["shape", "lora_A"]),
    "not finite": (lambda t: {name: value / 0 if "lora_down" in name else value for name, value in t.items()}, ["finite", "lora_down"]),
}


@each(FAULTS)
def test_a_file_that_cannot_be_meant_is_refused_with_its_name_and_the_key(fault):
    change, facts = FAULTS[fault]
    network = denoiser("sd")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "odd.safetensors"
        save_file(
            {name: value.contiguous() for name, value in change(sound()).items()},
            file,
            metadata={"ss_base_model_version": "sdxl_base_v1-0"},
        )
        with pytest.raises(CheckpointError) as error:
            add_adapter(network, read_lora(file, {"unet": network}, "unet", places("sd", network))["unet"])
    for fact in [str(file), *facts]:
        assert fact in str(error.value)


def test_an_unknown_module_comes_with_what_the_file_says_it_is_for(tmp_path):
    network = denoiser("sd")
    save_file(
        sound("sdxl")
        | {"lora_unet_label_emb_0_0.lora_down.weight": torch.ones(2, 2), "lora_unet_label_emb_0_0.lora_up.weight": torch.ones(2, 2)},
        tmp_path / "x.safetensors",
        metadata={"ss_base_model_version": "sdxl_base_v1-0"},
    )
    with pytest.raises(CheckpointError, match="sdxl_base_v1-0"):
        read_lora(tmp_path / "x.safetensors", {"unet": network}, "unet", places("sd", network))


@each(["missing.safetensors", "x.pt", "empty"])
def test_a_path_without_one_lora_file_is_refused(name):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.pt").touch()
        (Path(folder) / "empty").mkdir()
        with pytest.raises(CheckpointError, match=name):
            BaseLora.of(str(Path(folder) / name))


def test_a_strength_stands_behind_a_colon(tmp_path):
    save_file(sound(), tmp_path / "a:b.safetensors")
    save_file(sound(), tmp_path / "c.safetensors")
    assert BaseLora.of(str(tmp_path / "a:b.safetensors")).strength == 1.0
    assert BaseLora.of(f"{tmp_path / 'c.safetensors'}:-0.5").strength == -0.5
    for wrong in ("0", "strong", "nan", "100"):
        with pytest.raises(ConfigError, match="base_lora"):
            BaseLora.of(f"{tmp_path / 'c.safetensors'}:{wrong}")


def test_facts_of_a_fused_file_refuse_another_one_in_its_place(tmp_path):
    file = tmp_path / "c.safetensors"
    save_file(sound(), file)
    facts = BaseLora.of(str(file)).facts()
    assert BaseLora.of_facts(facts) == BaseLora.of(str(file))
    save_file({name: 2 * value for name, value in sound().items()}, file)
    with pytest.raises(CheckpointError, match="SHA-256"):
        BaseLora.of_facts(facts)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"c\.safetensors"):
        BaseLora.of_facts(facts)
