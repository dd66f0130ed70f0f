# python -m scripts.compare_cache; python -m scripts.compare_cache --model assets/tiny-sd3 --root outputs/compare_cache_sd3
"""Training on a bfloat16 cache beside training on a float32 one: the same draws and seeds, curves, weights and pictures compared.

The network computes in float32, so that nothing hides what the cache rounds. Two measures say how large a difference is: the same run
with its batch in two halves, which is equal but for the order of sums, and the same run from another seed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from safetensors.torch import load_file
from torch import Tensor

from diffalign.evaluate.win_rate import win_rate
from diffalign.train.trainer import LOG
from scripts.arena import Arena, Run, play_all

STEPS, PROMPTS = 50, 50  # of a training, and judged
OPTIONS = {"beta": 500.0, "learning_rate": 3e-3, "train_batch_size": 8}
HALVES = "float32, in halves"
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"cache_precision": "float32"},
    "bfloat16": {"cache_precision": "bfloat16"},
    HALVES: {"cache_precision": "float32", "train_batch_size": 4, "gradient_accumulation_steps": 2},
}
HEAD = "| what differs | loss: mean, most (its size) | weights | picture by picture (95 %) |"


def run_of(name: str, seed: int) -> Run:
    """Return a training on pairs of the renderer's."""
    return Run("off", "diffusion_dpo", {**OPTIONS, **VARIANTS[name]}, STEPS, seed, PROMPTS)


def losses(arena: Arena, run: Run) -> np.ndarray:
    """Return the loss of every step."""
    return np.array([json.loads(line)["loss"] for line in (arena.root / "runs" / run.key / LOG).read_text().splitlines()])


def change(arena: Arena, run: Run) -> dict[str, Tensor]:
    """Return what a run has added to each weight: the product of its LoRA's two matrices."""
    tensors = load_file(arena.root / "runs" / run.key / "pytorch_lora_weights.safetensors")
    down = {name: value.flatten(1) for name, value in tensors.items() if "lora_A" in name or "lora.down" in name}
    up = {name: tensors[name.replace("lora_A", "lora_B").replace("lora.down", "lora.up")].flatten(1) for name in down}
    return {name: up[name] @ down[name] for name in down}


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the length of the difference of two changes, as a share of the first's own length."""
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    return (apart / sum(float(value.square().sum()) for value in first.values())) ** 0.5


def row(arena: Arena, label: str, pairs: Sequence[tuple[Run, Run]]) -> str:
    """Return how the second run of each pair differs from the first; rates are the second's, pooled by prompt."""
    gaps = [np.abs(losses(arena, one) - losses(arena, other)) for one, other in pairs]
    size = np.mean([losses(arena, one).mean() for one, _ in pairs])
    apart = [distance(change(arena, one), change(arena, other)) for one, other in pairs]
    first, second = ([value for runs in pairs for value in arena.result(runs[side])["tastes"]] for side in (0, 1))
    won = win_rate(first, second, [prompt for one, _ in pairs for prompt in arena.prompts(one)])
    loss = f"{np.mean(gaps):.2g}, {np.max(gaps):.2g} ({size:.2g})"
    return f"| {label} | {loss} | {np.mean(apart):.2%} | {won.rate:.3f} ({won.low:.3f} to {won.high:.3f}) |"


def main(root: str = "outputs/compare_cache", model: str = "assets/tiny-sd", seeds: tuple[int, ...] = (0, 1)) -> None:
    """Train what is not trained yet, and print the tables.

    Args:
        root: Folder for pairs, caches and results; results are not computed twice.
        model: tiny-sd, or tiny-sd3.
        seeds: Of the trainings.
    """
    arena = Arena(Path(root), model)
    arena.eval_prompts = arena.eval_prompts[:PROMPTS]  # the base draws to all of them
    runs = [run_of(name, seed) for seed in seeds for name in ("float32", "bfloat16")]
    play_all(arena, [*runs, run_of(HALVES, seeds[0])], "0/1", Path(model).name)
    print("| cache | seed | win rate against the base (95 %) | adherence | held-out accuracy |", "| --- " * 5 + "|", sep="\n")
    for name, seed in itertools.product(VARIANTS, seeds):
        if not arena.has(run_of(name, seed)):
            continue
        found = arena.result(run_of(name, seed))
        rate = f"{found['win_rate']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        print(f"| {name} | {seed} | {rate} | {found['adherence']:.3f} | {found['heldout/implicit_acc']:.3f} |")
    plain, rounded = ([run_of(name, seed) for seed in seeds] for name in ("float32", "bfloat16"))
    print(f"\n{HEAD}", "| --- " * 4 + "|", sep="\n")
    print(row(arena, "the cache, bfloat16 for float32", list(zip(plain, rounded, strict=True))))
    print(row(arena, "the batch, in halves", [(plain[0], run_of(HALVES, seeds[0]))]))
    print(row(arena, "the seed", list(itertools.combinations(plain, 2))))


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    auto_cli(main)
