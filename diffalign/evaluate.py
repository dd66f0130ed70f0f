"""Judging a trained model: win rate against its base with an interval, and the implicit accuracy on pairs it has not seen."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from torch import Tensor
from tqdm.auto import tqdm

from diffalign import adapters
from diffalign.build import DTYPES, Parts, parts
from diffalign.config import TrainConfig
from diffalign.configcheck import known
from diffalign.configfile import from_mapping, load_yaml
from diffalign.data.batch import positions_alike, sample_generator
from diffalign.dataset import open_dataset
from diffalign.diffusion.likelihood import DiffusionLikelihood
from diffalign.diffusion.trajectory import forward
from diffalign.drawing import drawn_as
from diffalign.errors import ConfigError
from diffalign.infer.load import base_of, load, run_facts
from diffalign.infer.personal import Personal, restore
from diffalign.infer.sample import draw, grid
from diffalign.methods import METHODS
from diffalign.metrics import implicit_accuracy
from diffalign.shapes.judge import mean_adherence
from diffalign.shapes.tastes import TASTES, taste_score
from diffalign.specs import single


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of prompts that the second model wins, ties counting one half, with its 95 % interval."""

    rate: float
    low: float
    high: float
    prompts: int


def win_rate(base: Sequence[float], aligned: Sequence[float], prompts: Sequence[str], seed: int = 0) -> WinRate:
    """Return how often `aligned` scores above `base`, draw by draw; the interval is bootstrapped by prompt, not by image.

    Where every prompt ends alike a bootstrap has no spread; the interval is then the exact binomial one.
    """
    wins = (np.sign(np.asarray(aligned) - np.asarray(base)) + 1.0) / 2.0
    groups: dict[str, list[float]] = {}
    for prompt, win in zip(prompts, wins, strict=True):
        groups.setdefault(prompt, []).append(float(win))
    means = np.array([np.mean(group) for group in groups.values()])
    if np.ptp(means) == 0.0:
        low, high = binomtest(round(float(means.sum())), len(means)).proportion_ci()
    else:
        rng = np.random.default_rng(seed)
        low, high = bootstrap((means,), np.mean, n_resamples=9999, method="percentile", rng=rng).confidence_interval
    return WinRate(float(means.mean()), float(low), float(high), len(means))


@torch.no_grad()
def heldout_log_ratios(parts: Parts, draws: int = 10, batch_size: int = 32, seed: int = 0) -> Tensor:
    """Return the log-ratio of every candidate of the pairs in `parts`, (N, K), averaged over `draws` random times.

    Under plain noise whatever trajectory the method trains on, so that methods can be compared; plain scores without a reference.
    """
    policy = parts.backbone.denoiser
    policy.eval()
    likelihood, ratios = DiffusionLikelihood(parts.backbone.path, parts.backbone.predict, forward), {}
    for positions in tqdm(positions_alike(parts.pairs, batch_size), desc="held-out pairs", disable=None):
        batch = parts.pairs.to_batch([parts.pairs[p, 0] for p in positions]).to(next(policy.parameters()).device)
        total = torch.zeros(batch.x0.shape[:2], device=batch.x0.device)
        for repeat in range(draws):
            query = likelihood.prepare(policy, batch, [sample_generator(seed, p * draws + repeat) for p in positions])
            reference = parts.reference.score(likelihood, query)
            score = likelihood.score(policy, query)
            total += (score if reference is None else score - reference) / draws
        ratios |= zip(positions, total.cpu(), strict=True)
    return torch.stack([ratios[position] for position in range(len(ratios))])


def heldout_implicit_accuracy(parts: Parts) -> float:
    """Return the share of the pairs in `parts` whose preferred image has the larger log-ratio; ties count one half.

    As the paper classifies pairs (2311.12908, appendix).
    """
    return float(implicit_accuracy(heldout_log_ratios(parts)))


def learns_from_pairs(method: str) -> bool:
    """Return whether a method compares pictures; Self-NPO sees prompts alone."""
    return "prompt_only" not in [single("transform", spec)[0] for spec in METHODS[method].transforms]


def compare_run(
    output_dir: str | Path,
    prompts: Sequence[str],
    *,
    taste: str | None = None,
    dataset_name: str | None = None,
    dataset_split_name: str | None = None,
    reader: str | None = None,
    device: str = "cpu",
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    seed: int = 0,
    positive: str | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    dtype: str | None = None,
    user: Any = None,
) -> dict[str, Any]:
    """Return what a finished run gains over its base, and write `eval/report.json` and `eval/grid.png` into its folder.

    Both draw every prompt from the same noise; there is no win rate without a `taste`. The base of an NPO run is plain guidance at the
    same scale, with the run `positive` if there is one; `dtype` (no, fp16, bf16) is the training's. Personalised runs draw for `user`.
    """
    folder, facts = Path(output_dir), {"output_dir": str(output_dir), "prompts": len(prompts), "seed": seed}
    _check_asked(taste, user, [run_facts(Path(run)) for run in (folder, positive) if run is not None], draws=bool(prompts))
    (folder / "eval").mkdir(exist_ok=True)
    if prompts:
        made: dict[str, Any] = {"dtype": DTYPES[dtype or run_facts(folder).get("mixed_precision", "no")], "device": device}
        pipes = {
            "base": lambda: base_of(folder, dtype=made["dtype"]).to(device) if positive is None else load(positive, **made),
            "aligned": lambda: load(folder, positive=positive, alpha=alpha, beta=beta, **made),
        }
        told = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **drawn_as(folder)}
        drawn = {who: draw(_for(user, make()), prompts, range(seed, seed + len(prompts)), **told, label=who) for who, make in pipes.items()}
        grid([image for pair in zip(*drawn.values(), strict=True) for image in pair], 8).save(folder / "eval" / "grid.png")
        facts |= {"grid": str(folder / "eval" / "grid.png"), **(_judged(taste, prompts, drawn, seed) if taste else {})}
    if dataset_name is not None:
        facts["implicit_accuracy_heldout"] = round(_accuracy_on(folder, dataset_name, dataset_split_name, reader, device), 4)
    (folder / "eval" / "report.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def _check_asked(taste: str | None, user: Any, runs: Sequence[Mapping[str, Any]], *, draws: bool) -> None:
    """Raise ConfigError for an unknown taste, a personalised run without a user, and a user without such a run or pictures to draw."""
    if taste is not None:
        known("taste", taste, TASTES)
    personal = [run for run in runs if run.get("inference") == "user"]
    if personal and draws and user is None:
        raise ConfigError(
            f"a run of {personal[0]['method']} draws for a user; give a file of `diffalign user embed` with --user, pairs with --pairs "
            "(and --user_id, if they are of several users), or a training user's id with --user_id"
        )
    if user is not None and not (personal and draws):
        why = "draws no pictures without --prompts" if personal else "knows no users"
        raise ConfigError(f"a run of {runs[0]['method']} {why}; leave out --user, --user_id and --pairs")


def _for(user: Any, loaded: Any) -> Any:
    """Return the pipeline that draws for the user, where there are users."""
    return loaded.for_user(user) if isinstance(loaded, Personal) else loaded


def _judged(taste: str, prompts: Sequence[str], drawn: Mapping[str, Sequence[Any]], seed: int) -> dict[str, Any]:
    """Return win rate and adherence of the pictures `base` and `aligned`."""
    scores = {name: [taste_score(taste, image) for image in images] for name, images in drawn.items()}
    won = win_rate(scores["base"], scores["aligned"], prompts, seed)
    facts: dict[str, Any] = {"taste": taste, "win_rate": round(won.rate, 4), "ci95": [round(won.low, 4), round(won.high, 4)]}
    return facts | {f"adherence_{name}": round(mean_adherence(prompts, images), 4) for name, images in drawn.items()}


def _accuracy_on(folder: Path, dataset_name: str, split: str | None, reader: str | None, device: str) -> float:
    """Return the held-out implicit accuracy of a finished run on a dataset."""
    plain = {
        "torch_compile": False,
        "optimizer": "adamw",
        "use_8bit_adam": False,
        "report_to": None,
        "transforms": None,
        "max_train_samples": None,
        "proportion_empty_prompts": 0.0,
        "random_crop": False,
        "random_flip": False,
        "trajectory_cache": 0,
        "user_dropout": 0.0,
    }
    config = from_mapping(load_yaml(folder / "config.yaml") | plain, str(folder / "config.yaml"))
    if not learns_from_pairs(config.method):
        raise ConfigError(f"{folder}: `{config.method}` learns from prompts alone and ranks no pairs; leave out --dataset_name")
    config = replace(config, dataset_name=dataset_name, dataset_split_name=split, reader=reader, cache="off")
    with tempfile.TemporaryDirectory() as temporary:
        elsewhere = replace(config, output_dir=temporary)
        built = parts(elsewhere, open_dataset(elsewhere), torch.device(device), fit=False)
        return _accuracy_of(built, config, folder)


def _accuracy_of(built: Parts, config: TrainConfig, folder: Path) -> float:
    if config.tuning == "user":
        restore(built.backbone.denoiser, folder)
    else:
        adapters.load_result(built.backbone.denoiser, folder, full=config.tuning == "full", component=built.backbone.component)
    return heldout_implicit_accuracy(built)
