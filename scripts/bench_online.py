# python -m scripts.bench_online --method awm --seed 0
"""Online methods on the embedded models: reward over pictures and network evaluations, adherence, diversity, form.

One call runs one method from one seed, and appends a line to the results file; `--table` prints them by method, the seeds pooled, and
`--plot FILE` draws the reward over evaluations. So the runs can be spread over sessions. The online methods draw the same number of
pictures to the same 128 prompts and take the same number of updates; passes of the network are counted and written down. Models are
judged on 200 other prompts, by the sampler that they are used with (25 steps, guidance 4), against the base with the same noise. With
`--tuning` they are judged on 100 prompts of a third kind, so that constants are not chosen on the prompts of the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.data.table import read_table
from diffalign.evaluate.win_rate import win_rate
from diffalign.infer.load import load
from diffalign.infer.sample import grid
from diffalign.methods.config_file import from_mapping
from diffalign.rewards.drift import diversity, features
from diffalign.train import rounds
from diffalign.train.trainer import LOG, trainer_for
from scripts.arena import BASE, SCALE, TASTE, Arena, _counted

PROMPTS = 128  # to draw; others are judged
SIBLINGS, ALIKE = 4, 12  # pictures of a prompt, and prompts, that diversity is measured on
OLD = {"reference": "old_policy"}
START = {"reference": "policy_start"}
LIST = {"transforms": [{"list_of": {"score": "advantage"}}]}
NOISY = {"trajectory": {"forward": {"noisiest": 0.5}}}
GRADIENT = {"objective": {"clipped_ratio": {"low": 0.2}}, "reference": "none", **LIST}
METHODS: dict[str, dict[str, Any]] = {
    "online_dpo": {"method": "diffusion_dpo", "transforms": [{"pairs": {"how": "best_worst"}}, "orient"], "beta": 500, **NOISY, **START},
    "online_rank_dpo": {"method": "rank_dpo", "beta": 500, **NOISY, **START},
    "awm": {"objective": "awm", **NOISY, **START, **LIST},
    "dgpo": {"objective": {"dgpo": {"beta": 1000}}, **NOISY, **START, **LIST},
    "diffusion_nft": {
        "objective": {"diffusion_nft": {"beta": 0.1, "kl": 0.5}},
        "rollout_policy": "reference",
        "old_policy_decay": {"uprate": 0.001, "uphold": 0.5},
        **NOISY,
        **OLD,
        **LIST,
    },
    "flow_grpo": {**GRADIENT, "rollout": {"cps": {"size": 2}}},
    "branch_grpo": {**GRADIENT, "rollout": {"branch": {"splits": [0, 1], "depth_pruning": list(range(3, 10))}}},
}
SHOWN = ("taste", "adherence", "form_win_rate", "diversity")
HEAD = "| method | seeds | pictures | passes | win rate | of the seeds | taste | adherence | form | diversity |"


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is drawn and trained: pictures in all and of a prompt, prompts and updates of a turn, prompts of an update."""

    images: int = 168
    group: int = 4
    prompts: int = 14
    updates: int = 24
    batch: int = 14

    @property
    def turns(self) -> int:
        """Return how often the model draws."""
        return self.images // (self.group * self.prompts)


def play(arena: Arena, method: str, seed: int, budget: Budget, options: dict[str, Any], reward: str | None = None) -> dict[str, Any]:
    """Train online and return what it took, and the curve of the reward by turn: of `reward`, or of the arena's taste.

    A point is (pictures, evaluations, mean reward): what the model had been trained with when it drew the turn, and the turn's reward.
    """
    own = {
        **_common(arena, method, seed),
        "prompts": arena.train_prompts[:PROMPTS],
        "scorers": [{"taste": {"name": arena.taste}}],
        "images_per_prompt": budget.group,
        "prompts_per_turn": budget.prompts,
        "updates_per_turn": budget.updates,
        "num_inference_steps": 10,
        "sample_guidance_scale": SCALE,
        "train_batch_size": budget.batch,
        "max_train_steps": budget.turns * budget.updates,
        "spike_factor": 0,
    }
    trainer = trainer_for(from_mapping({**BASE, **own, **METHODS[method], **options}, "bench_online"))
    with _counted(trainer.network) as seen:
        trainer.fit()
    log = [json.loads(line) for line in (trainer.output_dir / LOG).read_text().splitlines()]
    turns = [line for line in log if "turn" in line]
    share, drawn = seen["rows"] / max(1, len(turns)), budget.group * budget.prompts
    curve = [[i * drawn, round(i * share), line[f"reward/{reward or arena.taste}"]] for i, line in enumerate(turns)]
    return {"images": len(turns) * drawn, "evaluations": int(seen["rows"]), "curve": curve}


def play_rounds(arena: Arena, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train RankDPO in three rounds, as scripts/compare_rounds.py does, and return what it took."""
    drawn = {"prompts": arena.train_prompts[:PROMPTS], "max_prompts": 43, "images_per_prompt": 4, "guidance_scale": SCALE}
    own = {
        **_common(arena, "rounds", seed),
        "method": "rank_dpo",
        "beta": 500,
        "learning_rate": 1e-3,
        "train_batch_size": 8,
        "max_train_steps": 53,
        "rounds": 3,
        "generate": drawn | {"scorers": [{"taste": {"name": arena.taste}}]},
    }
    folder = rounds.train(from_mapping({**BASE, **own, **options}, "bench_online"))
    tables = [read_table(folder / f"round-{number + 1}" / "data") for number in range(3)]
    drawn_images = sum(len(record.candidates) for table in tables for record in table)
    evaluations = drawn_images * 25 * 2 + 3 * 53 * 8 * 4 * 2  # guided steps, then the scores of policy and reference
    rewards = [float(np.mean([c.scores[arena.taste] for record in table for c in record.candidates])) for table in tables]
    curve = [[i * drawn_images // 3, i * evaluations // 3, reward] for i, reward in enumerate(rewards)]
    return {"images": drawn_images, "evaluations": evaluations, "curve": curve}


def _common(arena: Arena, method: str, seed: int) -> dict[str, Any]:
    """Return the keys that all runs have alike."""
    return {
        "pretrained_model_name_or_path": arena.model,
        "max_sequence_length": arena.length,
        "learning_rate": 2e-3,
        "seed": seed,
        "output_dir": str(_folder(arena, method, seed)),
        "overwrite_output_dir": True,
    }


def _folder(arena: Arena, method: str, seed: int) -> Path:
    return arena.root / "runs" / f"{method}-{seed}"


def judged(arena: Arena, method: str, seed: int, held_out: int, tuning: bool) -> dict[str, Any]:
    """Return how a trained model fares on held-out prompts: taste, adherence and form against the base, and diversity."""
    pipe, prompts = load(_folder(arena, method, seed)), (arena.tune_prompts if tuning else arena.eval_prompts)[:held_out]
    images = arena.pictures(pipe, prompts, seed * 1000 * (not tuning), "draw aligned")
    grid(images[:32], 16).save(arena.root / "results" / f"{method}-{seed}.png")
    base = arena.base(seed * (not tuning), tuning)
    facts = arena.judge(prompts, images, base) | {"base_tastes": base["taste"][: len(prompts)], "tuning": tuning}
    return facts if tuning else facts | {"diversity": round(siblings(arena, pipe, seed), 2)}


def siblings(arena: Arena, pipe: Any, seed: int) -> float:
    """Return the diversity of pictures of one held-out prompt, the mean of a few prompts."""
    prompts = [prompt for prompt in arena.eval_prompts[:ALIKE] for _ in range(SIBLINGS)]
    images, look = arena.pictures(pipe, prompts, 10**6 + 1000 * seed, "draw siblings"), features("pixels")
    return float(np.mean([diversity(images[i : i + SIBLINGS], look) for i in range(0, len(images), SIBLINGS)]))


def run(arena: Arena, method: str, seed: int, budget: Budget, options: dict[str, Any], held_out: int, tuning: bool) -> dict[str, Any]:
    """Return the line of one run: what it took, and how its model fares."""
    torch.set_flush_denormal(True)
    taken = play_rounds(arena, seed, options) if method == "rounds" else play(arena, method, seed, budget, options)
    about = {"model": Path(arena.model).name, "reward": arena.taste, "method": method, "seed": seed, "options": options}
    return about | taken | judged(arena, method, seed, held_out, tuning)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table for each model and reward: a row a method, its seeds pooled by prompt."""
    lines = list[str]()
    for place, methods in grouped(rows).items():
        lines += [f"{place}:", "", HEAD, "| --- " * (HEAD.count("|") - 1) + "|"]
        lines += [*(line(name, found) for name, found in methods.items()), ""]
    return "\n".join(lines)


def grouped(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the rows by model and reward, and by method; those of tuning are left out."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if not row["tuning"]:
            groups.setdefault(f"{row['model']}, {row['reward']}", {}).setdefault(row["method"], []).append(row)
    return groups


def line(method: str, found: Sequence[dict[str, Any]]) -> str:
    """Return the row of a method: the win rate with its interval by prompt, and the means of the seeds."""
    prompts = [str(place) for row in found for place in range(len(row["tastes"]))]  # the same ones in every seed
    won = win_rate([x for row in found for x in row["base_tastes"]], [x for row in found for x in row["tastes"]], prompts)
    mean = {name: float(np.mean([row[name] for row in found])) for name in ("images", "evaluations", *SHOWN)}
    cells = [method, str(len(found)), f"{mean['images']:.0f}", f"{mean['evaluations']:,.0f}"]
    cells += [f"{won.rate:.3f} ({won.low:.3f} to {won.high:.3f})", ", ".join(f"{row['win_rate']:.3f}" for row in found)]
    return f"| {' | '.join([*cells, *(f'{mean[name]:.3g}' for name in SHOWN)])} |"


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the reward of turns over passes of the network, the seeds averaged; a dot is that of the result on held-out prompts."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups, names = grouped(rows), list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(1, len(groups), figsize=(5.5 * len(groups), 4), squeeze=False)
    for axis, (place, methods) in zip(axes[0], groups.items(), strict=True):
        for method, found in methods.items():
            curves, color = np.mean([row["curve"] for row in found], axis=0), f"C{names.index(method)}"
            end = np.mean([[row["evaluations"], row["taste"]] for row in found], axis=0)
            axis.plot(*curves[:, 1:].T, color=color, label=method)
            axis.plot(*zip(curves[-1, 1:], end, strict=True), color=color, ls=":")
            axis.plot(*end, "o", color=color)
        axis.set(title=place, xlabel="passes of the network", ylabel="mean reward of a turn")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(
    method: str | None = None,
    seed: int = 0,
    model: str = "tiny-sd",
    reward: str = TASTE,
    budget: Budget | None = None,
    options: dict[str, Any] | None = None,
    held_out: int = 200,
    tuning: bool = False,
    root: str = "outputs/bench_online",
    results: str | None = None,
    plot: str | None = None,
) -> None:
    """Run one method from one seed and append a line to the results, or print the table of all that are there.

    Args:
        method: rounds, or a key of METHODS; the table if not given.
        seed: Seed of the training and of the pictures that are judged.
        model: tiny-sd or tiny-sd3.
        reward: The taste that judges what is drawn; prompts are those that leave it open.
        budget: What is drawn and trained.
        options: Other keys of the training config.
        held_out: Prompts that are judged.
        tuning: Judge by prompts that the table does not use.
        root: Folder of the runs.
        results: File of the results, if not results.jsonl in the folder.
        plot: File of the plot, to write beside the table.
    """
    file = Path(results or Path(root) / "results.jsonl")
    if method is not None:
        arena = Arena(Path(root) / f"{model}-{reward}", f"assets/{model}", reward)
        row = run(arena, method, seed, budget or Budget(), options or {}, held_out, tuning)
        with file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print({name: row[name] for name in ("method", "seed", "images", "evaluations", "win_rate", "taste", "adherence")})
        return
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    print(table(rows))
    if plot is not None:
        draw_curves(rows, Path(plot))


if __name__ == "__main__":
    auto_cli(main)
