"""Time and peak memory of the trainer's own step, beside what others do in its place and beside the least that it could take.

    python scripts/bench_step.py --model both --json outputs/bench_step.json

Variants are timed in turns (A B C A B C ...) in one process, and ratios are taken within a turn, so that a machine that slows down
slows all of them. Peak memory is that of a process of its own for each variant, its loading included. The floor is the step's
multiplications alone, at the best matmul rate measured in the same run. Images are read, and cached latents too, within the step.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffalign import build
from diffalign.backbones.folders import resolve
from diffalign.config import TrainConfig, from_mapping, load_yaml, save_yaml
from diffalign.data.batch import loader
from diffalign.dataset import open_dataset
from diffalign.shapes.captions import VOCABULARY, random_caption
from diffalign.shapes.scenes import random_scene, render
from diffalign.train import Trainer
from diffalign.types import Batch

TINY = "assets/tiny-sd"
RECORDS = 32
STEPS = 1_000_000  # more than a run takes
REDUCED = (
    "reduced SD1.5, random weights, 128 px: UNet 64-128-256-256 (a fifth of SD1.5's width), VAE 32-64-128-128 (a quarter), "
    "CLIP text encoder of 768 x 2 layers (SD1.5: 12) and 77 tokens"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to take the step: what differs from our config, and from the parts that it makes."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    second_reference: bool = False
    channels_last: bool = False


VARIANTS = {
    "ours": Variant("LoRA rank 8, cached, adapter-off reference (ours)"),
    "channels_last": Variant("the same, UNet in channels_last", channels_last=True),
    "live": Variant("the same, live: VAE and text encoder in the step", {"cache": "off"}),
    "second": Variant("the same, second network as reference", second_reference=True),
    "full": Variant("full fine-tuning, cached, second network", {"train_method": "full"}),
}


@dataclass(slots=True)
class Row:
    """A line of the table; `ratio` and `floor_ratio` are to our step and to the floor of the same kind."""

    label: str
    seconds: float
    ratio: float
    floor_ratio: float | None = None
    peak_mib: float | None = None


def write_reduced_sd(folder: Path) -> None:
    """Write a random Stable Diffusion of SD1.5's structure, narrower in about SD1.5's own proportions, in diffusers layout."""
    torch.manual_seed(0)
    empty = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    tokenizer = empty.train_new_from_iterator([" ".join(VOCABULARY)] * 10, vocab_size=600, show_progress=False)
    tokenizer.model_max_length = 77
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    width = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 2}
    text = CLIPTextModel(CLIPTextConfig(max_position_embeddings=77, projection_dim=768, **ids, **width))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=4,
        sample_size=128,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)  # pyright: ignore[reportArgumentType]
    pipe.save_pretrained(folder)


def write_pairs(path: Path, side: int) -> None:
    """Write pairs of drawings of `side` pixels as JPEG, in Pick-a-Pic's columns."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(RECORDS):
        scenes = [random_scene(rng) for _ in range(2)]
        images = [io.BytesIO(), io.BytesIO()]
        for scene, image in zip(scenes, images, strict=True):
            render(scene, rng).resize((side, side)).save(image, "JPEG", quality=95)
        pictures = {f"jpg_{k}": image.getvalue() for k, image in enumerate(images)}
        rows.append({"caption": random_caption(scenes[0], rng), **pictures, "label_0": float(i % 2), "label_1": float(1 - i % 2)})
    pq.write_table(pa.Table.from_pylist(rows), path)


def base_config(model: str, side: int, work: Path, args: argparse.Namespace) -> TrainConfig:
    """Return our config, its pairs imported. The learning rate and the guard leave random weights as they are."""
    write_pairs(work / "pairs.parquet", side)
    config = TrainConfig(
        pretrained_model_name_or_path=model,
        dataset_name=str(work / "pairs.parquet"),
        output_dir=str(work / "run"),
        resolution=side,
        train_batch_size=args.pairs,
        max_train_steps=STEPS,
        mixed_precision=args.mixed_precision,
        learning_rate=1e-8,
        spike_factor=0.0,
    )
    return replace(config, dataset_name=str(open_dataset(config).table.path)).check()


class Stepper:
    """A trainer ready to step as `variant` does, batches included."""

    def __init__(self, variant: Variant, config: TrainConfig) -> None:
        config = replace(config, **variant.changes)
        self.trainer = trainer = Trainer(config, open_dataset(config))
        if variant.second_reference:
            # Only full fine-tuning is given a second network.
            as_full = replace(config, train_method="full")
            frozen = build.reference(as_full, trainer.parts.backbone, trainer.accelerator.device)
            trainer.parts = replace(trainer.parts, reference=frozen)
        if variant.channels_last:
            trainer.denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.batches: Iterator[Batch] = loader(trainer.parts.pairs, trainer.sampler, 0, STEPS // 1000)

    def seconds(self, repeats: int) -> float:
        """Return the median time of an optimiser step: batch, forward passes, backward, clipping, AdamW, zero_grad."""
        times = []
        for _ in range(repeats):
            start = clock(self.trainer.accelerator.device)
            self.trainer._optimizer_step(self.batches)
            times.append(clock(self.trainer.accelerator.device) - start)
            self.trainer.step += 1
        return statistics.median(times)


def clock(device: torch.device) -> float:
    """Return the time in seconds when everything asked of `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def flops(function: Callable[[], Any]) -> int:
    """Return the floating-point operations of a call: matmuls, convolutions and attention, a multiply-add as two."""
    # As plain matmuls, attention is counted alike on every device and by every version of torch.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        function()
    return counter.get_total_flops()


def step_flops(parts: build.Parts, policy: nn.Module, batch: Batch, *, backward: int) -> int:
    """Return the least operations of a step: policy and reference forward once, and `backward` times the policy's forward.

    1 for an adapter (gradients of activations only; those of the adapter itself are left out), 2 where weights get gradients too.
    """
    query = parts.likelihood.prepare(policy, batch, torch.Generator().manual_seed(0))
    forward = flops(lambda: parts.likelihood.score(policy, query))
    return (1 + backward) * forward + flops(lambda: parts.reference.score(parts.likelihood, query))


def matmul_rate(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    """Return the best rate, in operations a second, of several multiplications (m, k) @ (k, n)."""
    m, k, n = shape
    left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
    times = []
    for _ in range(repeats + 2):
        start = clock(device)
        torch.mm(left, right)
        times.append(clock(device) - start)
    return 2.0 * m * k * n / min(times[2:])


def matmul_shapes(denoiser: Any, config: TrainConfig, latent: int) -> list[tuple[int, int, int]]:
    """Return a large square, and the 3x3 convolutions of the UNet's first and second width as matmuls (pixels, 9 c, c)."""
    widths = denoiser.config.block_out_channels[:2]
    images = 2 * config.train_batch_size
    return [(1024, 1024, 1024)] + [(images * (latent >> i) ** 2, 9 * c, c) for i, c in enumerate(widths)]


def peak_mib(device: torch.device) -> float:
    """Return the peak memory of this process: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands the parent's ru_maxrss down through exec; VmHWM is this program's alone.
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def peak_of(name: str, config: Path, threads: int) -> float:
    """Return the peak memory of a variant in MiB, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak_of", name, "--config", str(config), "--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this script
    return json.loads(done.stdout.splitlines()[-1])["peak_mib"]


def measure(config: TrainConfig, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return the table of one model, and the rates and operations behind its floors."""
    steppers = {name: Stepper(VARIANTS[name], config) for name in names}
    trainer = steppers["ours"].trainer
    device, batch = trainer.accelerator.device, next(steppers["ours"].batches)
    work = {kind: step_flops((t := steppers[name].trainer).parts, t.denoiser, batch, backward=b) for kind, name, b in FLOORS}
    shapes = matmul_shapes(trainer.denoiser, config, batch.x0.shape[-1])
    rates = dict.fromkeys(shapes, 0.0)
    rounds: list[dict[str, float]] = []
    for turn in tqdm(range(1 + args.rounds), desc="time (first round warms up)"):
        for shape in shapes:
            rates[shape] = max(rates[shape], matmul_rate(shape, build.DTYPES[config.mixed_precision], device))
        rounds += [{name: stepper.seconds(args.repeats if turn else 1) for name, stepper in steppers.items()}]
    file = Path(config.output_dir).parent / "bench.yaml"
    save_yaml(config, file)
    peaks = {name: peak_of(name, file, args.threads) for name in tqdm(["base", *names], desc="peak memory")}
    rate = max(rates.values())
    return {
        "rows": table_rows(rounds[1:], {kind: count / rate for kind, count in work.items()}, peaks),
        "gflop": {kind: count / 1e9 for kind, count in work.items()},
        "gflop_per_second": {"x".join(map(str, shape)): value / 1e9 for shape, value in rates.items()},
    }


FLOORS = (("LoRA", "ours", 1), ("full", "full", 2))  # floor, variant whose modules are counted, backward passes


def table_rows(rounds: list[dict[str, float]], floors: Mapping[str, float], peaks: Mapping[str, float]) -> list[Row]:
    """Return a row a variant and a row a floor; ratios are medians of the ratios within a round."""
    rows = []
    for name in rounds[0]:
        seconds = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r[name] / r["ours"] for r in rounds)
        rows.append(Row(VARIANTS[name].label, seconds, ratio, seconds / floors["full" if name == "full" else "LoRA"], peaks.get(name)))
    rows += [Row(f"floor, {kind}", seconds, seconds / rows[0].seconds) for kind, seconds in floors.items()]
    return rows + [Row("python and its libraries alone", 0.0, 0.0, peak_mib=peaks["base"])] * ("base" in peaks)


def render_table(rows: list[Row]) -> str:
    """Return the rows as text; a cell that says nothing is a dash."""

    def cell(value: float | None, digits: int) -> str:
        return f"{value:.{digits}f}" if value else "-"

    lines = [["", "s/step", "x ours", "x floor", "peak MiB"]]
    lines += [[r.label, cell(r.seconds, 4), cell(r.ratio, 2), cell(r.floor_ratio, 2), cell(r.peak_mib, 0)] for r in rows]
    wide = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join([line[0].ljust(wide[0])] + [line[i].rjust(wide[i]) for i in range(1, 5)]) for line in lines)


def bench(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the reduced or the embedded model, print its table, and return it."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, side, about = resolve(TINY), 64, f"{TINY}, 64 px"
        if kind == "reduced":
            model, side, about = str(work / "sd"), 128, REDUCED
            write_reduced_sd(work / "sd")
        names = [name for name in VARIANTS if args.channels_last or name != "channels_last"]
        result = measure(base_config(model, side, work, args), names, args)
    rates, gflop = result["gflop_per_second"], result["gflop"]
    best = max(rates, key=rates.get)
    print(f"\n{about}; {args.pairs} pairs a step, mixed_precision {args.mixed_precision}\n{render_table(result['rows'])}")
    print(f"floors: LoRA {gflop['LoRA']:.1f}, full {gflop['full']:.1f} GFLOP at {rates[best]:.0f} GFLOP/s", end="")
    print(f", the best matmul of {', '.join(f'{shape} ({rate:.0f})' for shape, rate in rates.items())}\n")
    return {"model": about, **result, "rows": [asdict(row) for row in result["rows"]]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["reduced", "tiny", "both"], default="both")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="steps of each variant in a round, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels_last", action="store_true", help="compare our step with the UNet in that memory format")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    logging.getLogger("diffalign").setLevel(logging.WARNING)
    if args.peak_of:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if args.peak_of != "base":
            Stepper(VARIANTS[args.peak_of], from_mapping(load_yaml(args.config), str(args.config))).seconds(3)
        print(json.dumps({"peak_mib": peak_mib(device)}))
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {"threads": args.threads, "torch": torch.__version__, "processor": platform.processor() or platform.machine(), "gpu": gpu}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results = {}
    for kind in ["reduced", "tiny"] if args.model == "both" else [args.model]:
        if kind == "tiny" and not Path(resolve(TINY)).is_dir():
            print(f"{TINY} is not there; it is skipped.")
            continue
        results[kind] = bench(kind, args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
