# python -m scripts.bench_full_size
"""Steps of Diffusion-DPO on models of published size with random weights: ratios of ways to take the step, memory beside the dry run's
estimate, and the share of the best matmul.

Meant for one GPU and at most twelve minutes, after which no further model is begun: SD 1.5 at 512 px, the others at 1024, LoRA of rank 8,
bf16, gradient checkpointing, nf4 for the large ones. Latents and prompts are random, as a cache would hand them over. The ways of a model
are timed in turns, and their ratios are to the first: as it comes, with peft's own call of LoRA layers, in channels_last (UNets), and with
regional compilation, whose first step is told apart. Without a GPU a model is shrunk to one block of each kind and 128 px, which shows that
the script runs, and nothing else. What other programs take is measured on small models, by `scripts/bench_step.py`.
"""

from __future__ import annotations

import inspect
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from operator import truediv
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from peft.tuners import lora
from torch import nn

from diffalign.core.types import Batch
from diffalign.methods.builders import dry_run, image, speed
from diffalign.methods.builders.common import DTYPES
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import recipe_of
from diffalign.models.adapters import trainable
from diffalign.models.backbones.table import load_backbone
from diffalign.models.lora_layers import LoraLinear, without_dispatch
from diffalign.train.optimizer import make_optimizer
from diffalign.train.step import preference_step
from scripts.bench_step import clock, flops, matmul_rate, peak_mib
from scripts.matrix import latent_of
from scripts.model_memory import PAIR, published_outline, shape_of
from tests.contracts.test_real_dimensions import CONFIGS
from tests.micro_models import write_micro

DEPTHS = ("num_layers", "num_single_layers", "n_layers", "n_refiner_layers", "layers_per_block", "transformer_layers_per_block")
QUANTIZED: dict[str, Any] = {"Flux-dev": "nf4", "Z-Image": "nf4"}
PIXELS = {"SD 1.5": 512}  # others 1024
MODELS = ["SD 1.5", "SDXL", "SD3-medium", "Flux-dev"]
MINUTES = 12.0
WAYS = ("as it comes", "peft's dispatch", "channels_last", "regional compilation")


def shrunk(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with one block of each kind."""
    names = inspect.signature(kind).parameters
    return {**config, **{name: 1 for name in DEPTHS if name in names}}


def quantised(network: nn.Module) -> None:
    """Put bitsandbytes' layers of nf4, as `quantization: nf4` loads them, in the place of all linear layers; they quantise on the GPU."""
    import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]  # of a GPU alone

    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear):
            made = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            made.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            made.bias = layer.bias
            network.set_submodule(name, made.to(layer.weight.device))
    vars(network)["is_loaded_in_4bit"] = True  # by which peft knows it


class Bench:
    """A model of published size with its adapter, reference and optimiser, and a random batch of one pair."""

    def __init__(self, model: str, config: TrainConfig, work: Path, device: torch.device, small: bool) -> None:
        family, kind, facts = CONFIGS[model]
        folder = work / family
        backbone: Any = load_backbone(str(folder if folder.exists() else write_micro(family, folder)), device, precision=torch.bfloat16)
        with device:
            network = kind(**(shrunk(kind, facts) if small else facts))
        nn.Module.to(network, torch.bfloat16)
        if config.quantization is not None:
            quantised(network)
        backbone.denoiser = network.requires_grad_(False).eval()
        setattr(backbone.pipeline(whole=False), backbone.component, network)
        recipe = recipe_of(config, "image")
        image.equip(config, recipe, backbone)
        likelihood, compared = image.likelihood_of(config, recipe, backbone), image.reference(config, recipe, backbone, device)
        self.config = config
        self.parts = Parts("image", recipe, backbone, likelihood, compared, pairs=[], table="")  # pyright: ignore[reportArgumentType]  # no data
        self.policy, self.device = network.train(), device
        self.optimizer = make_optimizer(config, trainable(network))
        self.batch = self._random(latent_of(family, 16 if small else 1024 // PIXELS.get(model, 1024)), network.config)

    def _random(self, latent: tuple[int, ...], config: Mapping[str, Any]) -> Batch:
        encoded = self.parts.backbone.encode_prompt(["a prompt"])
        with self.device:
            condition = {
                name: torch.ones(value.shape) if name.endswith("mask") else torch.randn(shape_of(name, value.shape, config))
                for name, value in encoded.items()
            }
            return Batch(torch.randn(1, 2, *latent), condition, condition, torch.ones(1))

    def go(self, way: str) -> None:
        """Take further steps in another way; compilation stays, so it comes last."""
        for layer in self.policy.modules():
            if type(layer) is LoraLinear:
                object.__setattr__(layer, "__class__", lora.Linear)
        if way != "peft's dispatch":
            without_dispatch(self.policy)
        order = torch.channels_last if way == "channels_last" else torch.contiguous_format
        if any(isinstance(layer, nn.Conv2d) for layer in self.policy.modules()):
            nn.Module.to(self.policy, memory_format=order)
        if way == "regional compilation":
            speed.compile_network(replace(self.config, torch_compile="regional"), self.policy)

    def _driving(self) -> AbstractContextManager[nn.Module]:
        return nullcontext(self.policy)

    def step(self) -> float:
        """Take a step, and return its seconds."""
        start = clock(self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        loss, _ = preference_step(self.parts, self.policy, self.batch, generator, self._driving)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return clock(self.device) - start


def step_work(model: str, config: TrainConfig, work: Path) -> tuple[int, float]:
    """Return the operations of a step on a pair (two forward passes and a backward one; what checkpointing repeats is no work), and the
    bytes that the dry run estimates, both counted without numbers."""
    latent = latent_of(CONFIGS[model][0], 1024 // PIXELS.get(model, 1024))
    own, drawn = published_outline(CONFIGS[model][0], model, latent, work, quantization=config.quantization)
    backbone = drawn.model

    def forward() -> None:
        with drawn.mode, backbone.device:
            x = torch.zeros(2, *backbone.latent_shape(0, 0))
            backbone.predict(backbone.denoiser, x, torch.full((2,), 0.5), backbone.encode_prompt(["a prompt"] * 2))

    backbone.denoiser.eval()
    count = flops(forward)
    return 3 * count, sum(size for _, size in dry_run.memory(own, recipe_of(own), drawn))


def in_turns(bench: Bench, steps: int, ways: Sequence[str]) -> dict[str, list[float]]:
    """Return the seconds of steps in each way, taken in turns; the first turn warms up."""
    seconds = {way: list[float]() for way in ways}
    for turn in range(1 + steps):
        for way, taken in seconds.items():
            bench.go(way)
            spent = bench.step()
            taken += [spent] if turn else []
    return seconds


def unet(bench: Bench) -> bool:
    """Return whether the network has convolutions for another memory format to be of use."""
    return any(isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) for layer in bench.policy.modules())


def measure(model: str, steps: int, small: bool, work: Path) -> dict[str, Any]:
    """Return the numbers of a model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrainConfig(**PAIR, dataset_name="none", quantization=QUANTIZED.get(model) if device.type == "cuda" else None)
    start = time.perf_counter()
    row: dict[str, Any] = {"model": model, "blocks": "one of each kind" if small else "all", "base": config.quantization or "bf16"}
    bench = Bench(model, config, work, device, small)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = in_turns(bench, steps, [way for way in WAYS if way != "regional compilation" and (way != "channels_last" or unet(bench))])
    row |= {"seconds a step": statistics.median(seconds["as it comes"]), "steps": steps, "peak GiB": peak_mib() / 2**10}
    row["times as fast"] = {way: statistics.median(map(truediv, seconds["as it comes"], seconds[way])) for way in seconds}
    row["images a second"] = 2 / row["seconds a step"]
    if not small and config.quantization is None:
        bench.go("regional compilation")
        first, compiled = bench.step(), [bench.step() for _ in range(steps)]
        faster = row["seconds a step"] / statistics.median(compiled)
        row["regional compilation"] = {"seconds of the first step": first, "times as fast": faster}
    if not small:
        side = 8192 if device.type == "cuda" else 512
        rate = max(matmul_rate((side, side, side), DTYPES[config.mixed_precision], device) for _ in range(3))
        work_of_step, estimate = step_work(model, config, work)
        row |= {"TFLOP a step": work_of_step / 1e12, "TFLOP/s of matmul": rate / 1e12, "estimated GiB": estimate / 2**30}
        row["share of matmul"] = work_of_step / row["seconds a step"] / rate
    return row | {"seconds in all": time.perf_counter() - start}


def main(models: list[str] | None = None, steps: int = 5, small: bool | None = None, results: str | None = None) -> None:
    """Measure models one after the other and write a JSON file.

    Args:
        models: Names of CONFIGS, such as SDXL; SD 1.5, SDXL, SD3-medium and Flux-dev if not given.
        steps: Turns of each way that count.
        small: One block of each kind and 128 px; as there is no GPU, if not given.
        results: File of the results; assets/benchmarks/full_size.json if not given and not small.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    small, rows, began = not torch.cuda.is_available() if small is None else small, [], time.perf_counter()
    for model in models or MODELS:
        if rows and time.perf_counter() - began > 60 * MINUTES * len(rows) / (len(rows) + 1):
            print(f"{model} is left out: {MINUTES:g} minutes would not do")
            continue
        with tempfile.TemporaryDirectory() as work:
            rows.append(measure(model, steps, small, Path(work)))
        print(json.dumps(rows[-1]), flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    versions = {name: version(name) for name in ("torch", "diffusers", "peft", "accelerate", "diffalign")}
    facts = {"device": device, "versions": versions, "command": sys.argv, "settings": PAIR, "rows": rows}
    file = Path(results) if results else None if small else Path("assets/benchmarks/full_size.json")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    auto_cli(main)
