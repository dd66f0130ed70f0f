# python -m scripts.bench_online_text --name grpo --seed 0
"""A prompt writer trained online by its pictures' rewards, against the writer that it began as, and one that learned from pairs.

The prompts and the way of judging are those of `diffalign quickstart --text`, which made assets/tiny-lm/sem_dpo: each held-out prompt is
rewritten once by every writer with the same seed, and drawn once from the same noise. The run is the recipe configs/tiny/online_text.yaml
on 256 prompts. One call appends a line to the results.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.cli.demo.rewriting import Studio, attribute_distance
from diffalign.core.runs import Run
from diffalign.data.world.captions import parse
from diffalign.data.world.rewrites import short_prompts
from diffalign.data.world.tastes import OPEN_ATTRIBUTES
from diffalign.evaluate.win_rate import win_rate
from diffalign.infer.kinds.text import base_writer
from diffalign.infer.load import load
from diffalign.infer.sample import grid
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.models.backbones.table import load_pipeline
from diffalign.train.align import train
from scripts.arena import TASTE

RECIPE, PAIRS_WRITER, TRAIN = "configs/tiny/online_text.yaml", "assets/tiny-lm/sem_dpo", 256
STREAM = 1_000_003  # between the seeds of two runs, as in the quickstart


def main(
    name: str = "grpo",
    seed: int = 0,
    held_out: int = 200,
    options: dict[str, Any] | None = None,
    root: str = "outputs/bench_online_text",
) -> None:
    """Train a writer online, judge it, and append a line to results.jsonl in the folder.

    Args:
        name: What the line is called.
        seed: Seed of the training and of what is judged.
        held_out: Prompts that are judged, up to 200.
        options: Other keys of the training config.
        root: Folder of the runs.
    """
    torch.set_flush_denormal(True)
    prompts = short_prompts()
    shuffled = [prompts[place] for place in np.random.default_rng([0, 0]).permutation(len(prompts))]
    asked, folder = shuffled[TRAIN : TRAIN + held_out], Path(root) / f"{name}-{seed}"
    own = {"prompts": shuffled[:TRAIN], "seed": seed, "output_dir": str(folder), "overwrite_output_dir": True}
    start = time.process_time()
    train(from_mapping({**load_yaml(RECIPE), **own, **(options or {})}, "bench_online_text"))
    seconds = time.process_time() - start
    run = Run.open(folder, expects="text")
    writers = {"base": base_writer(run), "online": load(folder), "pairs": load(PAIRS_WRITER)}
    studio, first = Studio(load_pipeline("assets/tiny-sd"), TASTE), seed * STREAM + 1
    noise = range(first, first + len(asked))
    made = {who: studio.judge(asked, writer(asked, seed=first), noise, f"draw {who}") for who, writer in writers.items()}
    grid([one.image for who in made for one in made[who][:16]], 16).save(Path(root) / f"{name}-{seed}.png")
    row: dict[str, Any] = {"name": name, "seed": seed, "options": options or {}, "seconds": round(seconds)}
    row |= {"images": run.facts["online"]["images"]}
    row |= _win_rates(asked, {who: [one.taste for one in rewrites] for who, rewrites in made.items()})
    for who, rewrites in made.items():
        row |= {f"{what} {who}": number for what, number in _measured(asked, rewrites).items()}
    with (Path(root) / "results.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


def _win_rates(prompts: Sequence[str], taste: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return [win rate, low, high] of one writer against another, over all prompts, and over those that leave the taste open."""
    left = [place for place, prompt in enumerate(prompts) if not set(OPEN_ATTRIBUTES[TASTE]) & parse(prompt).keys()]
    rates = {}
    for who, against in (("online", "base"), ("pairs", "base"), ("online", "pairs")):
        for what, places in (("all", range(len(prompts))), ("open", left)):
            won = win_rate([taste[against][i] for i in places], [taste[who][i] for i in places], [prompts[i] for i in places])
            rates[f"{who} against {against}, {what} {len(places)}"] = [round(one, 3) for one in (won.rate, won.low, won.high)]
    return rates


def _measured(prompts: Sequence[str], rewrites: Sequence[Any]) -> dict[str, float]:
    """Return the mean taste and adherence of rewrites, the share of attributes they keep, and how many are different."""
    kept = 1.0 - np.mean(attribute_distance(prompts, [one.text for one in rewrites]))
    means = {"taste": np.mean([one.taste for one in rewrites]), "adherence": np.mean([one.adherence for one in rewrites]), "kept": kept}
    return {what: round(float(mean), 3) for what, mean in means.items()} | {"different": len({one.text for one in rewrites})}


if __name__ == "__main__":
    auto_cli(main)
