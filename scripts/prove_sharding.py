# python -m scripts.prove_sharding "[unet_lora, unet_full, dit_lora, dit_full]"
"""One process, two of them (DDP), and a model spread over two (FSDP2) train the same records: how far losses and weights lie apart.

On a CPU, by gloo, in float32, on the embedded models. The step is linear in the gradient (a large epsilon in Adam): Adam's own, which is
nearly the gradient's sign, makes of any rounding a whole step.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from safetensors.torch import load_file
from torch import Tensor, multiprocessing
from torch.distributed import init_process_group

from diffalign.methods.config import TrainConfig
from diffalign.train.align import run
from scripts.bench_step import write_pairs

UNET = {"pretrained_model_name_or_path": "assets/tiny-sd"}
DIT = {"pretrained_model_name_or_path": "assets/tiny-sd3"}
LORA: dict[str, Any] = {"train_method": "lora", "rank": 4, "learning_rate": 1.0, "use_ema": True, "ema_decay": 0.5}
FULL: dict[str, Any] = {"train_method": "full", "learning_rate": 0.01, "gradient_checkpointing": True}
CASES = {"unet_lora": UNET | LORA, "unet_full": UNET | FULL, "dit_lora": DIT | LORA | {"learning_rate": 0.1}, "dit_full": DIT | FULL}
# How the eight records of a step are divided, by the name of the way.
WAYS = {"one": (4, 2), "ddp": (2, 2), "fsdp2": (2, 2)}


def config(case: str, way: str, work: Path, steps: int) -> TrainConfig:
    """Return the config of a case, trained one way."""
    batch, accumulated = WAYS[way]
    settings = {"beta": 100.0, "adam_epsilon": 1.0, "spike_factor": 0.0, "max_train_steps": steps, "checkpointing_steps": 10 * steps}
    settings |= {"dataset_name": str(work / "pairs.parquet"), "train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    return TrainConfig(**CASES[case], **settings, output_dir=str(work / f"{case}-{way}"))


def two(rank: int, cases: Sequence[str], work: Path, steps: int) -> None:
    """Be one of two processes, as a launcher starts them."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()} | {"ACCELERATE_USE_CPU": "true", "FSDP_VERSION": "2"}
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{work / 'meeting'}", rank=rank, world_size=2)
    for case in cases:
        for way in ("ddp", "fsdp2"):
            os.environ["ACCELERATE_USE_FSDP"] = str(way == "fsdp2").lower()
            run(config(case, way, work, steps))


def weights(folder: Path) -> Mapping[str, Tensor]:
    """Return what a run has trained."""
    adapter = folder / "pytorch_lora_weights.safetensors"
    if adapter.exists():
        return load_file(adapter)
    return load_file(next(folder.glob("*/diffusion_pytorch_model.safetensors")))


def losses(folder: Path) -> Tensor:
    """Return the losses (steps,) of a run."""
    return torch.tensor([json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()], dtype=torch.float64)


def row(case: str, way: str, work: Path) -> str:
    """Return a row of the table: how far a way lies from one process, and how far that one process has moved what it trains."""
    one, other = (work / f"{case}-{name}" for name in ("one", way))
    apart = (losses(one) - losses(other)).abs()
    ours, theirs = (torch.cat([value.flatten() for _, value in sorted(weights(folder).items())]) for folder in (one, other))
    differ, largest = (ours - theirs).abs(), ours.abs().max()
    numbers = (apart.max(), apart.mean(), differ.max(), differ.mean(), largest, losses(one)[0] - losses(one)[-1])
    return f"| {case} | {way} | " + " | ".join(f"{float(number):.2g}" for number in numbers) + " |"


def main(cases: list[str] = list(CASES), steps: int = 6, work: str | None = None) -> None:  # noqa: B006  # never changed
    """Print the table of `cases`; every process computes on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(work or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_pairs(folder / "pairs.parquet", 64)
        for case in cases:
            run(config(case, "one", folder, steps))
        multiprocessing.spawn(two, (cases, folder, steps), nprocs=2)
        print("| case | against one process | loss, max | mean | weights, max | mean | largest weight | the loss fell by |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        print("\n".join(row(case, way, folder) for case in cases for way in ("ddp", "fsdp2")))


if __name__ == "__main__":
    auto_cli(main)
