# python -m scripts.bench_step --model reduced --threads 1 --no_memory --only ours full diffusers authors
"""Time and peak memory of the trainer's own step, beside what is done elsewhere in its place, and beside the least it could take.

Variants are timed in turns (A B C A B C ...), and ratios are taken within a turn, so that a machine that slows down slows them all.
Peak memory is that of a process for each variant, loading included. The floor is the step's multiplications alone, at the best matmul
rate of the same run. Reading a batch is part of the step. With `--threads 1` and no GPU, times are those of the process alone, which its
neighbours do not take. What other programs do is rebuilt in `scripts/peers.py`; `--diffusers_script FILE` also runs diffusers' own, on the
same pairs and model, in turns with `diffalign train`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
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
from diffusers.utils import logging as diffusers_logging
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from diffalign.core.types import Batch
from diffalign.data.sampler import loader
from diffalign.data.world.captions import VOCABULARY, random_caption
from diffalign.data.world.scenes import random_scene, render
from diffalign.methods.builders import image as build
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping, load_yaml, save_yaml
from diffalign.methods.recipe import recipe_of
from diffalign.models import lora_layers
from diffalign.models.backbones.folders import resolve
from diffalign.train.trainer import trainer_for
from scripts.peers import FullScript, LoraScript, timed_script

TINY = "assets/tiny-sd"
PAIRS = "pairs.parquet"
STEPS = 10_000  # more than a run takes
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
    peer: type[LoraScript] | None = None  # what is done elsewhere


VARIANTS = {
    "ours": Variant("LoRA rank 8, cached, adapter-off reference (ours)"),
    "channels_last": Variant("the same, UNet in channels_last", channels_last=True),
    "live": Variant("the same, live: VAE and text encoder in the step", {"cache": "off"}),
    "second": Variant("the same, second network as reference", second_reference=True),
    "full": Variant("full fine-tuning, cached, second network", {"train_method": "full"}),
    "diffusers": Variant("LoRA rank 8, as diffusers' script does it", peer=LoraScript),
    "authors": Variant("full fine-tuning, as the authors' script does it", peer=FullScript),
}
PEERS = {"diffusers": "ours", "authors": "full"}  # and what of ours does the same

FLOORS = (("LoRA", "ours", 1), ("full", "full", 2))  # kind, variant whose modules are counted, backward passes


@dataclass(frozen=True, slots=True)
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
    text: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text |= {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 2}
    vae: dict[str, Any] = {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 2, "latent_channels": 4, "sample_size": 128}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    # SD1.5's block types, and its eight heads, are the default.
    unet = UNet2DConditionModel(sample_size=16, block_out_channels=(64, 128, 256, 256), cross_attention_dim=768, attention_head_dim=8)
    parts = AutoencoderKL(**vae), CLIPTextModel(CLIPTextConfig(**text)), tokenizer, unet, DDIMScheduler(), None, None
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)  # pyright: ignore[reportArgumentType]


def write_pairs(path: Path, side: int, count: int = 32) -> None:
    """Write pairs of drawings of `side` pixels as JPEG, in Pick-a-Pic's columns."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        row: dict[str, Any] = {"label_0": float(i % 2), "label_1": float(1 - i % 2)}
        for k in range(2):
            scene, buffer = random_scene(rng), io.BytesIO()
            render(scene, rng).resize((side, side)).save(buffer, "JPEG", quality=95)
            row |= {"caption": random_caption(scene, rng), f"jpg_{k}": buffer.getvalue()}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), path)


def base_config(model: str, side: int, work: Path, args: argparse.Namespace) -> TrainConfig:
    """Return our config, its pairs imported. The learning rate and the guard leave random weights as they are."""
    write_pairs(pairs := work / PAIRS, side)
    config = TrainConfig(pretrained_model_name_or_path=model, dataset_name=str(pairs))
    config = replace(config, output_dir=str(work / "run"), resolution=side, max_train_steps=STEPS, learning_rate=1e-8, spike_factor=0.0)
    config = replace(config, train_batch_size=args.pairs, mixed_precision=args.mixed_precision)
    return replace(config, dataset_name=str(open_dataset(config, recipe_of(config)).table.path))


class PeerStepper:
    """The step of another program, batches included."""

    def __init__(self, variant: Variant, config: TrainConfig) -> None:
        pairs = Path(config.output_dir).parent / PAIRS
        where = str(config.pretrained_model_name_or_path), pairs, config.resolution or 512, config.train_batch_size
        self.peer = (variant.peer or LoraScript)(*where, config.mixed_precision)

    def seconds(self, repeats: int) -> float:
        """Return the median time of a step."""
        return timed(self.peer.step, repeats, self.peer.device)


class Stepper:
    """A trainer ready to step as `variant` does, batches included."""

    def __init__(self, variant: Variant, config: TrainConfig) -> None:
        config = replace(config, **variant.changes)
        self.trainer = trainer = trainer_for(config)
        self.device = trainer.accelerator.device
        self.unet: Any = trainer.network
        if variant.second_reference:
            # Only full fine-tuning is given a second network by itself.
            full = replace(config, train_method="full")
            second = build.reference(full, recipe_of(full), trainer.parts.backbone, self.device)
            trainer.parts = replace(trainer.parts, reference=second)
        if variant.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.batches: Iterator[Batch] = loader(trainer.parts.pairs, trainer.sampler, 0, STEPS)

    def seconds(self, repeats: int) -> float:
        """Return the median time of an optimiser step: batch, forward passes, backward, clipping, AdamW, zero_grad."""
        return timed(self.step, repeats, self.device)

    def step(self) -> None:
        """Take a step."""
        self.trainer.optimizer_step(self.batches)
        self.trainer.step += 1


def made(name: str, config: TrainConfig) -> Any:
    """Return what steps as the variant of that name."""
    return (PeerStepper if VARIANTS[name].peer else Stepper)(VARIANTS[name], config)


def timed(step: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the median time of a step."""
    times = []
    for _ in range(repeats):
        start = clock(device)
        step()
        times.append(clock(device) - start)
    return statistics.median(times)


def clock(device: torch.device) -> float:
    """Return the time in seconds when everything asked of `device` is done; of one thread on a CPU its own, without that of neighbours."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def flops(function: Callable[[], Any]) -> int:
    """Return the floating-point operations of a call: matmuls, convolutions and attention, a multiply-add as two."""
    # As plain matmuls, attention is counted alike on every device and by every version of torch.
    with lora_layers.counter() as counted, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        function()
    return counted.get_total_flops()


def step_flops(parts: build.Parts, policy: Any, batch: Batch, *, backward: int) -> int:
    """Return the least operations of a step; `backward` is 1 where activations get gradients, 2 where all weights do too."""
    query = parts.likelihood.prepare(policy, batch, torch.Generator().manual_seed(0))
    forward = flops(lambda: parts.likelihood.score(policy, query))
    return (1 + backward) * forward + flops(lambda: parts.reference.score(parts.likelihood, query))


def matmul_rate(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Return the best rate, in operations a second, of a dozen multiplications (m, k) @ (k, n)."""
    left, right = (torch.randn(sides, device=device, dtype=dtype) for sides in (shape[:2], shape[1:]))
    times = []
    for _ in range(12):
        start = clock(device)
        torch.mm(left, right)
        times.append(clock(device) - start)
    return 2.0 * math.prod(shape) / min(times)


def peak_mib() -> float:
    """Return the peak memory of this process in MiB: allocated on a GPU, resident on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if (status := Path("/proc/self/status")).exists():
        # Linux hands the parent's ru_maxrss down through exec; VmHWM is this program's alone.
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(config: TrainConfig, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return the table of one model, and the rates and operations behind its floors."""
    steppers = {name: made(name, config) for name in names}
    device, batch = steppers["ours"].device, next(steppers["ours"].batches)
    floors = [floor for floor in FLOORS if floor[1] in names]
    work = {kind: step_flops(steppers[name].trainer.parts, steppers[name].unet, batch, backward=b) for kind, name, b in floors}
    pixels, widths = batch.x0[:, :, 0].numel(), steppers["ours"].unet.config.block_out_channels[:2]
    # A large square, and the 3x3 convolutions at the UNet's first and second width as matmuls.
    rates = dict.fromkeys([(1024, 1024, 1024), *((pixels // 4**i, 9 * c, c) for i, c in enumerate(widths))], 0.0)
    rounds, peaks = [], {}
    for turn in tqdm(range(1 + args.rounds), desc="time (first round warms up)"):
        rates = {s: max(best, matmul_rate(s, build.DTYPES[config.mixed_precision], device)) for s, best in rates.items()}
        rounds += [{name: stepper.seconds(args.repeats if turn else 1) for name, stepper in steppers.items()}]
    save_yaml(config, file := Path(config.output_dir).with_suffix(".yaml"))
    for name in tqdm([] if args.no_memory else ["base", *names], desc="peak memory, a process each"):
        command = [sys.executable, "-m", "scripts.bench_step", "--peak_of", name, "--config", str(file), "--threads", str(args.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this script itself
        peaks[name] = float(done.stdout.split()[-1])
    return {
        "seconds": rounds[1:],
        "rows": table_rows(rounds[1:], {kind: count / max(rates.values()) for kind, count in work.items()}, peaks),
        "times as fast": {
            peer: statistics.median(r[peer] / r[own] for r in rounds[1:]) for peer, own in PEERS.items() if {peer, own} <= set(names)
        },
        "gflop": {kind: count / 1e9 for kind, count in work.items()},
        "gflop_per_second": {"x".join(map(str, shape)): rate / 1e9 for shape, rate in rates.items()},
    }


def table_rows(rounds: list[dict[str, float]], floors: Mapping[str, float], peaks: Mapping[str, float]) -> list[Row]:
    """Return a row a variant and a row a floor; ratios are medians of the ratios within a round."""
    rows = []
    for name in rounds[0]:
        seconds = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r[name] / r["ours"] for r in rounds)
        floor = floors["full" if PEERS.get(name, name) == "full" else "LoRA"]
        rows.append(Row(VARIANTS[name].label, seconds, ratio, seconds / floor, peaks.get(name)))
    rows += [Row(f"floor, {kind}", seconds, seconds / rows[0].seconds) for kind, seconds in floors.items()]
    return rows + ([Row("python and its libraries alone", 0.0, 0.0, peak_mib=peaks["base"])] if "base" in peaks else [])


def render_table(rows: list[Row]) -> str:
    """Return the rows as text; a cell that says nothing is a dash."""

    def cell(value: float | None, digits: int) -> str:
        return f"{value:.{digits}f}" if value else "-"

    lines = [["", "s/step", "x ours", "x floor", "peak MiB"]]
    lines += [[r.label, cell(r.seconds, 4), cell(r.ratio, 2), cell(r.floor_ratio, 2), cell(r.peak_mib, 0)] for r in rows]
    wide = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join([line[0].ljust(wide[0])] + [line[i].rjust(wide[i]) for i in range(1, 5)]) for line in lines)


def against_script(config: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of diffusers' script and of `diffalign train`, two processes each, in turns, and the ratio of CPU times."""
    work, turns = Path(config.output_dir).parent, {"diffusers": [], "ours": []}
    shared = {"pretrained_model_name_or_path": config.pretrained_model_name_or_path, "resolution": config.resolution}
    shared |= {"train_batch_size": args.pairs, "max_train_steps": args.script_steps, "learning_rate": 1e-8, "rank": 8}
    (data := work / "data").mkdir(exist_ok=True)
    (data / "train.parquet").write_bytes((work / PAIRS).read_bytes())
    words = {
        "diffusers": {**shared, "dataset_name": data, "output_dir": work / "theirs", "lr_scheduler": "constant"},
        "ours": {**shared, "dataset_name": work / PAIRS, "output_dir": work / "again", "overwrite_output_dir": "true"},
    }
    files = {"diffusers": args.diffusers_script, "ours": Path(__file__).with_name("train.py")}
    for _ in range(2):
        for name, flags in words.items():
            turns[name].append(timed_script(files[name], [str(w) for flag, value in flags.items() for w in (f"--{flag}", value)]))
    best = {name: min(turn["seconds of CPU"] for turn in made_by) for name, made_by in turns.items()}
    return {"turns": turns, "times as fast, by CPU": best["diffusers"] / best["ours"]}


def bench(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the reduced or the embedded model, print its table, and return it."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, side, about = resolve(TINY), 64, f"{TINY}, 64 px"
        if kind == "reduced":
            model, side, about = str(work / "sd"), 128, REDUCED
            write_reduced_sd(work / "sd")
        names = args.only or [name for name in VARIANTS if args.channels_last or name != "channels_last"]
        config = base_config(model, side, work, args)
        result = measure(config, names, args)
        if args.diffusers_script:
            result["scripts"] = against_script(config, args)
    rates = result["gflop_per_second"]
    print(f"\n{about}; {args.pairs} pairs a step, mixed_precision {args.mixed_precision}\n{render_table(result['rows'])}")
    for peer, ratio in result["times as fast"].items():
        print(f"{VARIANTS[PEERS[peer]].label}: {ratio:.2f} times as fast as {VARIANTS[peer].label}")
    if "scripts" in result:
        print("the scripts themselves:", json.dumps(result["scripts"]))
    print("floors:", ", ".join(f"{name} {count:.1f} GFLOP" for name, count in result["gflop"].items()), end="")
    print(f" at {max(rates.values()):.0f} GFLOP/s, the best matmul of", ", ".join(f"{shape} ({rate:.0f})" for shape, rate in rates.items()))
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
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", help=f"these alone, with ours, of: {', '.join(VARIANTS)}")
    parser.add_argument("--no_memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--diffusers_script", type=Path, help="diffusers' train_diffusion_dpo.py, to run it too")
    parser.add_argument("--script_steps", type=int, default=12, help="optimiser steps of a script in a turn")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if args.peak_of:
        if args.peak_of != "base":
            made(args.peak_of, from_mapping(load_yaml(args.config), str(args.config))).seconds(3)
        print(peak_mib())
        return
    machine = {"threads": args.threads, "torch": torch.__version__, "gpu": torch.cuda.is_available() and torch.cuda.get_device_name()}
    print(machine)
    kinds = ["reduced", "tiny"] if args.model == "both" else [args.model]
    if "tiny" in kinds and not Path(resolve(TINY)).is_dir():
        print(f"{TINY} is not there; it is skipped.")
        kinds.remove("tiny")
    results = {kind: bench(kind, args) for kind in kinds}
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
