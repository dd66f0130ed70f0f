# python -m scripts.bench_online --method awm --seed 0
"""Online methods on the embedded model, taste "high": reward over pictures and network evaluations, adherence, diversity, form.

One call runs one method from one seed, and appends a line to the results file; `--table` prints all lines that are there. So the runs can
be spread over sessions. All methods draw the same number of pictures to the same 128 prompts, and take the same number of passes of the
network as long as they score the same number of latents and networks; both numbers are counted and written down. They are judged on 200
held-out prompts, by the sampler that the model is used with (25 steps, guidance 4), against the base with the same noise.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.data.pictures import decode_image
from diffalign.data.table import Table, read_table
from diffalign.infer.load import load
from diffalign.infer.sample import grid
from diffalign.methods.config_file import from_mapping
from diffalign.train import rounds
from diffalign.train.trainer import LOG, trainer_for
from scripts.arena import BASE, SCALE, TASTE, Arena, _counted

PROMPTS = 128  # to draw; others are judged
PASSES = 4  # of a turn through what it has drawn
OLD = {"reference": "old_policy"}
LIST = {"transforms": [{"list_of": {"score": "advantage"}}]}
# Constants of AWM, DGPO and DiffusionNFT are the releases', betas of the others those of compare_rank.py; one rate for all, not tuned.
METHODS: dict[str, dict[str, Any]] = {
    "online_dpo": {"method": "diffusion_dpo", "transforms": [{"pairs": {"how": "best_worst"}}, "orient"], "beta": 250, **OLD},
    "online_rank_dpo": {"method": "rank_dpo", "beta": 125, **OLD},
    "awm": {"objective": "awm", "old_policy_decay": {"uprate": 0.001, "uphold": 0.3}, **OLD, **LIST},
    "dgpo": {"objective": {"dgpo": {"beta": 100}}, **OLD, **LIST},
    "diffusion_nft": {
        "objective": "diffusion_nft",
        "rollout_policy": "reference",
        "old_policy_decay": {"uprate": 0.001, "uphold": 0.5},
        **OLD,
        **LIST,
    },
}
METHODS["flow_grpo"] = {"objective": {"clipped_ratio": {"low": 1e-3}}, "reference": "none", "rollout": {"cps": {"size": 2}}, **LIST}
SHOWN = ("images", "evaluations", "win_rate", "taste", "adherence", "form_win_rate", "diversity", "seconds")


def play(arena: Arena, method: str, seed: int, images: int, group: int, prompts: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train online and return what it took, and the curve of the reward: (pictures, evaluations, mean reward) by turn."""
    own = {
        "pretrained_model_name_or_path": arena.model,
        "prompts": arena.train_prompts[:PROMPTS],
        "scorers": [{"taste": {"name": TASTE}}],
        "images_per_prompt": group,
        "prompts_per_turn": prompts,
        "updates_per_turn": PASSES,
        "num_inference_steps": 10,
        "sample_guidance_scale": SCALE,
        "train_batch_size": prompts,
        "max_train_steps": images // (group * prompts) * PASSES,
        "learning_rate": 1e-3,
        "seed": seed,
        "output_dir": str(arena.root / "runs" / f"{method}-{seed}"),
        "overwrite_output_dir": True,
        "checkpointing_steps": 10**6,
        "spike_factor": 0,
    }
    trainer = trainer_for(from_mapping({**BASE, **own, **METHODS[method], **options}, "bench_online"))
    with _counted(trainer.network) as seen:
        trainer.fit()
    log = [json.loads(line) for line in (trainer.output_dir / LOG).read_text().splitlines()]
    turns = [line for line in log if "turn" in line]
    share = seen["rows"] / max(1, len(turns))
    curve = [[(i + 1) * group * prompts, round((i + 1) * share), line[f"reward/{TASTE}"]] for i, line in enumerate(turns)]
    return {"images": len(turns) * group * prompts, "evaluations": int(seen["rows"]), "curve": curve, "diversity": turns[-1]["diversity"]}


def play_rounds(arena: Arena, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train RankDPO in three rounds, as scripts/compare_rounds.py does, and return what it took."""
    drawn = {"prompts": arena.train_prompts[:PROMPTS], "max_prompts": 43, "images_per_prompt": 4, "guidance_scale": SCALE}
    own = {
        "pretrained_model_name_or_path": arena.model,
        "method": "rank_dpo",
        "beta": 500,
        "learning_rate": 1e-3,
        "train_batch_size": 8,
        "max_train_steps": 53,
        "rounds": 3,
        "generate": drawn | {"scorers": [{"taste": {"name": TASTE}}]},
        "seed": seed,
        "output_dir": str(arena.root / "runs" / f"rounds-{seed}"),
        "overwrite_output_dir": True,
    }
    folder = rounds.train(from_mapping({**BASE, **own, **options}, "bench_online"))
    tables = [read_table(folder / f"round-{number + 1}" / "data") for number in range(3)]
    drawn_images = sum(len(record.candidates) for table in tables for record in table)
    evaluations = drawn_images * 25 * 2 + 3 * 53 * 8 * 4 * 2  # guided steps, then the scores of policy and reference
    rewards = [float(np.mean([c.scores[TASTE] for record in table for c in record.candidates])) for table in tables]
    curve = [[(i + 1) * drawn_images // 3, (i + 1) * evaluations // 3, reward] for i, reward in enumerate(rewards)]
    return {"images": drawn_images, "evaluations": evaluations, "curve": curve, "diversity": _diversity(tables[-1])}


def _diversity(table: Table) -> float:
    from diffalign.rewards.drift import diversity, features

    look = features("pixels")
    groups = ([decode_image(c.image or b"", record.source) for c in record.candidates] for record in table)
    return float(np.mean([diversity(group, look) for group in groups]))


def main(
    method: str | None = None,
    seed: int = 0,
    images: int = 512,
    group: int = 8,
    prompts: int = 4,
    held_out: int = 200,
    options: dict[str, Any] | None = None,
    root: str = "outputs/bench_online",
    results: str | None = None,
) -> None:
    """Run one method from one seed and append a line to the results, or print the table of all that are there.

    Args:
        method: rounds, or a key of METHODS; the table if not given.
        seed: Seed of the training and of the pictures that are judged.
        images: Pictures drawn in all.
        group: Pictures of a prompt in a turn.
        prompts: Prompts of a turn.
        held_out: Prompts that are judged.
        options: Other keys of the training config.
        root: Folder of the runs.
        results: File of the results, if not results.jsonl in the folder.
    """
    file = Path(results or Path(root) / "results.jsonl")
    if method is None:
        _print(file)
        return
    arena, start = Arena(Path(root)), time.process_time()
    torch.set_flush_denormal(True)
    options = options or {}
    taken = play_rounds(arena, seed, options) if method == "rounds" else play(arena, method, seed, images, group, prompts, options)
    seconds = round(time.process_time() - start, 1)
    asked = arena.eval_prompts[:held_out]
    shown = arena.pictures(load(arena.root / "runs" / f"{method}-{seed}"), asked, seed * 1000, "draw aligned")
    grid(shown[:32], 16).save(arena.root / "results" / f"{method}-{seed}.png")
    base = arena.base(seed)
    judged = arena.judge(asked, shown, {"taste": base["taste"], "form": base["form"]})
    row = {"method": method, "seed": seed, "options": options, **taken, **judged, "seconds": seconds}
    _append(file, row | {"base_taste": round(float(np.mean(base["taste"][:held_out])), 4)})


def _append(file: Path, row: dict[str, Any]) -> None:
    """Add a line to the results, and print it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    print({name: row[name] for name in SHOWN})


def _print(file: Path) -> None:
    """Print a line of each run."""
    print(f"| method | seed | {' | '.join(SHOWN)} |", "| --- " * (2 + len(SHOWN)) + "|", sep="\n")
    for row in map(json.loads, file.read_text().splitlines()):
        numbers = (f"{row[name]:,.4g}" if isinstance(row[name], float) else f"{row[name]:,}" for name in SHOWN)
        print(f"| {row['method']} {row['options'] or ''} | {row['seed']} | {' | '.join(numbers)} |")


if __name__ == "__main__":
    auto_cli(main)
