"""Comparing a trained language model with its base: what both write, and how both rank pairs that were not trained on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.core.intervals import sign_test
from diffalign.core.progress import progress
from diffalign.core.runs import Run
from diffalign.core.specs import single
from diffalign.core.types import Scores
from diffalign.evaluate.heldout import PairAccuracy
from diffalign.infer.kinds.text import base_writer
from diffalign.infer.load import load
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.text import parts
from diffalign.methods.config_file import config_of
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import recipe_of
from diffalign.models import adapters
from diffalign.models.text.head import States
from diffalign.objectives import implicit_rewards
from diffalign.objectives.metrics import describe, suppression, top_k


def compare_texts(
    output_dir: str | Path,
    prompts: Sequence[str],
    *,
    dataset_name: str | None = None,
    dataset_split_name: str | None = None,
    reader: str | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a finished run of a language model with its base, write `eval/report.json` and `eval/texts.jsonl`, and return the facts.

    Both answer every prompt with the same seed. Of a dataset of pairs not trained on: the implicit accuracy and all numbers of `describe`.
    """
    run, facts = Run.open(output_dir, expects="text"), {"output_dir": str(output_dir), "prompts": len(prompts), "seed": seed}
    (run.folder / "eval").mkdir(exist_ok=True)
    if prompts:
        writers = {"base": base_writer(run, device=device), "aligned": load(run.folder, device=device)}
        texts = {who: writer(list(prompts), seed=seed) for who, writer in writers.items()}
        rows = [dict(zip(("prompt", *texts), row, strict=True)) for row in zip(prompts, *texts.values(), strict=True)]
        (run.folder / "eval" / "texts.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        facts |= {"texts": str(run.folder / "eval" / "texts.jsonl")}
    if dataset_name is not None:
        facts |= {"heldout": heldout(run, dataset_name, dataset_split_name, reader, device)}
    (run.folder / "eval" / "report.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def heldout(run: Run, dataset_name: str, split: str | None, reader: str | None, device: str) -> dict[str, float]:
    """Return how a finished run ranks the pairs of a dataset, under its own objective and likelihood."""
    plain: dict[str, Any] = {"torch_compile": False, "optimizer": "adamw", "use_8bit_adam": False, "report_to": None}
    plain |= {"max_train_samples": None}
    former = config_of(run)
    if "singles" in [single("transform", spec)[0] for spec in former.transforms or ()]:  # trained on single votes, judged on pairs
        plain |= {"transforms": None}
    config = replace(former, **plain, dataset_name=dataset_name, dataset_split_name=split, reader=reader, curriculum=None)
    with tempfile.TemporaryDirectory() as temporary:
        elsewhere = replace(config, output_dir=temporary, cache_dir=temporary)
        recipe = recipe_of(elsewhere, "text")
        built = parts(elsewhere, recipe, open_dataset(elsewhere, recipe), torch.device(device))
        network, peaks = built.backbone.network, {"base": peakedness(built)}  # before the result is put in
        adapters.load_result(network, run.folder, full=run.full, component=built.backbone.component)
        network.eval()
        peaks["aligned"] = peakedness(built)
        scores, rewards = scored(built, partial(implicit_rewards, recipe.objective))
    numbers = describe(scores, recipe.beta, rewards)
    if scores.reference is not None:
        numbers["suppression"] = suppression(scores.log_ratio)
    numbers |= {f"{key}/{who}": value for who, peak in peaks.items() for key, value in peak.items()}
    return {"pairs": len(scores.policy), **_counts(rewards), **{key: round(float(value), 6) for key, value in numbers.items()}}


def _counts(rewards: Tensor) -> dict[str, float]:
    """Return how many pairs rewards (N, K) rank as people did, and the sign test's p, beside the rates of `describe`."""
    accuracy = PairAccuracy.of(rewards)
    return {
        "right": accuracy.right,
        "wrong": accuracy.wrong,
        "tied": accuracy.tied,
        "sign_test_p": sign_test(accuracy.right, accuracy.wrong),
    }


@torch.no_grad()
def peakedness(built: Parts, batch_size: int = 8) -> dict[str, Tensor]:
    """Return mass and entropy of the ten likeliest next tokens, means over the tokens of the preferred answers (2410.11677)."""
    trained: Any = built.likelihood
    likelihood = replace(trained, needs=frozenset({"collision"}))  # which keeps the states that logits are read from
    peaks: list[dict[str, Tensor]] = []
    for start in range(0, len(built.pairs), batch_size):
        rows = [built.pairs[position, 0] for position in range(start, min(start + batch_size, len(built.pairs)))]
        batch = built.pairs.to_batch(rows).to(built.backbone.device)
        chosen = replace(batch, prompts=tuple(ids[:1] for ids in batch.prompts), completions=tuple(ids[:1] for ids in batch.completions))
        states = likelihood.score(built.backbone.network, chosen).states
        peaks += [top_k(States(part, states.head).logits()) for part in states.values.split(512)]
    return {f"top_k/{key}": torch.cat([one[key] for one in peaks]).mean().cpu() for key in ("mass", "entropy")}


@torch.no_grad()
def scored(built: Parts, reward: Callable[[Scores], Tensor], batch_size: int = 8) -> tuple[Scores, Tensor]:
    """Return the scores of all pairs in `built`, without what objectives of tokens read, and their rewards (B, K), on the CPU."""
    batches: list[Scores] = []
    rewards: list[Tensor] = []
    for start in progress(range(0, len(built.pairs), batch_size), desc="judge held-out pairs", unit="batches"):
        part = range(start, min(start + batch_size, len(built.pairs)))
        batch = built.pairs.to_batch([built.pairs[position, 0] for position in part]).to(built.backbone.device)
        reference = built.reference.score(built.likelihood, batch)
        scores = built.likelihood.scores(built.likelihood.score(built.backbone.network, batch), reference, batch)
        batches.append(replace(scores, tokens=None))
        rewards.append(reward(scores))

    def joined(name: str) -> Tensor | None:
        values = [getattr(scores, name) for scores in batches]
        return None if values[0] is None else torch.cat(values).cpu()

    columns = {name: torch.cat([scores.columns[name] for scores in batches]).cpu() for name in batches[0].columns}
    values: dict[str, Any] = {name: joined(name) for name in ("policy", "reference", "prob", "weight", "offset", "lengths")}
    return Scores(**values, normalized=batches[0].normalized, columns=columns), torch.cat(rewards).cpu()
