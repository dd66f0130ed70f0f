# python -m scripts.compare_rounds
"""Three rounds of RankDPO against one, at equal images and equal steps: against the base, and picture by picture.

One round is that of compare_rank.py: 128 prompts with four images each of tiny-sd, ranked by the taste "high", 160 steps of 8 records.
Three rounds draw 43 of these prompts each, with the model as it then is, and train 53 steps each on them, against themselves as they
began. Everything else is alike: beta, rate, the 200 held-out prompts and their noises.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.data.table import read_table
from diffalign.evaluate.win_rate import WinRate
from diffalign.infer.load import load
from diffalign.methods.config_file import from_mapping
from diffalign.train import rounds
from scripts.arena import BASE, SCALE, TASTE, Arena, play_all, scores
from scripts.compare_rank import BETA, PROMPTS, RECORDS, SEEDS, STEPS, draw_rankings, pooled, run_of

ROUNDS = 3
HEAD = "| seed | three rounds against base | {0} against base | three against {0} | adherence | of {0} |"


def run_rounds(arena: Arena, seed: int, momentum: float = 0.0) -> dict[str, Any]:
    """Return what three rounds gave: of the folder, if they were run before; a killed run goes on."""
    name = f"rounds-{seed}" if not momentum else f"rounds-{momentum:g}-{seed}"
    path = arena.root / "results" / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    drawn = {"prompts": arena.train_prompts[:PROMPTS], "max_prompts": -(-PROMPTS // ROUNDS), "guidance_scale": SCALE}
    own = {
        "pretrained_model_name_or_path": arena.model,
        "method": "rank_dpo",
        "beta": BETA,
        "learning_rate": 1e-3,
        "train_batch_size": RECORDS["rank_dpo"],
        "max_train_steps": STEPS // ROUNDS,
        "rounds": ROUNDS,
        "generate": drawn | {"scorers": [{"taste": {"name": TASTE}}]},
        "seed": seed,
        "round_momentum": momentum,
        "output_dir": str(arena.root / "runs" / name),
        "resume_from_checkpoint": "latest",
    }
    folder = rounds.train(from_mapping(BASE | own, "compare_rounds"))
    images = arena.pictures(load(folder), arena.eval_prompts, seed * 1000, "draw aligned")
    found = arena.judge(arena.eval_prompts, images, arena.base(seed))
    tables = [read_table(folder / f"round-{number + 1}" / "data") for number in range(ROUNDS)]
    means = [float(np.mean([c.scores[TASTE] for record in table for c in record.candidates])) for table in tables]
    facts = found | {"seed": seed, "prompts": len(images), "tastes": scores(images)["taste"], "drawn": means}
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def in_words(won: WinRate) -> str:
    """Return a win rate with its interval."""
    return f"{won.rate:.3f} ({won.low:.3f} to {won.high:.3f})"


def main(root: str = "outputs/compare_rank", momentum: float = 0.0) -> None:
    """Run both, and print the table: every seed, and all of them together, pooled by prompt.

    Args:
        root: Folder for rankings and results, shared with compare_rank.py; results are not computed twice.
        momentum: Compare three rounds with this `round_momentum` against three without, instead of one round.
    """
    arena = Arena(Path(root))
    torch.set_flush_denormal(True)
    many = [run_rounds(arena, seed, momentum) for seed in SEEDS]
    if momentum:
        once, other = [run_rounds(arena, seed) for seed in SEEDS], "three without momentum"
    else:
        for seed in SEEDS:
            draw_rankings(arena, seed)
        once, other = play_all(arena, [run_of("rank_dpo", BETA, seed) for seed in SEEDS], "0/1", "one round"), "one round"
    print(HEAD.format(other), "| --- " * 6 + "|", sep="\n")
    for places, name in [*(([i], str(seed)) for i, seed in enumerate(SEEDS)), (range(len(SEEDS)), "all")]:
        own, others = ([side[i] for i in places] for side in (many, once))
        base = [arena.base(facts["seed"])["taste"] for facts in own]
        found = pooled(arena, own, base), pooled(arena, others, base), pooled(arena, own, [facts["tastes"] for facts in others])
        cells = [name, *map(in_words, found), *(f"{np.mean([facts['adherence'] for facts in side]):.3f}" for side in (own, others))]
        print(f"| {' | '.join(cells)} |", flush=True)
    drawn = np.mean([facts["drawn"] for facts in many], axis=0)
    print("mean taste of what the rounds drew:", ", ".join(f"{value:.3f}" for value in drawn))


if __name__ == "__main__":
    auto_cli(main)
