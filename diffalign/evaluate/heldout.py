"""Judging a trained model: win rate against its base with an interval, and the implicit accuracy on pairs it has not seen."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm.auto import tqdm

from diffalign import adapters
from diffalign.build import Parts, parts
from diffalign.config import TrainConfig
from diffalign.configfile import from_mapping, load_yaml
from diffalign.data.batch import positions_alike, sample_generator
from diffalign.data.readers import READERS
from diffalign.data.readers.base import read
from diffalign.data.readers.detect import detect
from diffalign.data.table import is_table, read_table
from diffalign.dataset import open_dataset
from diffalign.diffusion.likelihood import DiffusionLikelihood
from diffalign.diffusion.trajectory import forward
from diffalign.errors import ConfigError, did_you_mean
from diffalign.infer.load import run_facts
from diffalign.infer.personal import restore
from diffalign.intervals import bootstrapped
from diffalign.methods import METHODS
from diffalign.metrics import implicit_accuracy
from diffalign.specs import single


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of prompts that the second model wins, ties counting one half, with its 95 % interval, NaN where there is none."""

    rate: float
    low: float
    high: float
    prompts: int


def win_rate(base: Sequence[float], aligned: Sequence[float], prompts: Sequence[str], seed: int = 0) -> WinRate:
    """Return how often `aligned` scores above `base`, draw by draw; the interval is bootstrapped by prompt, not by image.

    Where every prompt is won, or every one lost, a bootstrap has no spread; the interval is then the exact binomial one. Otherwise
    there is none for fewer than 5 prompts, nor where all end alike, such as even.
    """
    wins = (np.sign(np.asarray(aligned) - np.asarray(base)) + 1.0) / 2.0
    groups: dict[str, list[float]] = {}
    for prompt, win in zip(prompts, wins, strict=True):
        groups.setdefault(prompt, []).append(float(win))
    means = np.array([np.mean(group) for group in groups.values()])
    low = high = math.nan
    if set(means) in ({0.0}, {1.0}):
        low, high = binomtest(int(means.sum()), len(means)).proportion_ci()
    elif np.ptp(means) > 0.0:
        low, high = bootstrapped(means, seed)
    return WinRate(float(means.mean()), float(low), float(high), len(means))


@dataclass(frozen=True, slots=True)
class SignTest:
    """How many prompts the second model wins, loses and ties, and the exact two-sided sign test's p of the decided ones."""

    wins: int
    losses: int
    ties: int
    p: float


def sign_test(base: Sequence[float], aligned: Sequence[float], prompts: Sequence[str]) -> SignTest:
    """Return the sign test over prompts: one is won where more of its draws are won than lost. Prompts that tie are left out of `p`.

    `p` is 1 where no prompt is decided.
    """
    ahead: dict[str, float] = {}
    for prompt, sign in zip(prompts, np.sign(np.asarray(aligned) - np.asarray(base)), strict=True):
        ahead[prompt] = ahead.get(prompt, 0.0) + float(sign)
    wins, losses = (sum(sign * own > 0.0 for own in ahead.values()) for sign in (1.0, -1.0))
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return SignTest(wins, losses, len(ahead) - wins - losses, p)


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


def check_pairs(folder: Path, dataset_name: str, split: str | None, reader: str | None) -> None:
    """Raise the error that a dataset for `accuracy_on` deserves, its first row included; ConfigError for a method that ranks no pairs."""
    method = run_facts(folder)["method"]
    if not learns_from_pairs(method):
        raise ConfigError(f"{folder}: `{method}` learns from prompts alone and ranks no pairs; leave out --dataset_name")
    if is_table(dataset_name):
        read_table(dataset_name)
        return
    name = reader or detect(dataset_name, split)
    if name not in READERS:
        raise ConfigError(f"there is no reader `{name}`.{did_you_mean(name, READERS)}")
    next(read(READERS[name], dataset_name, split=split), None)


def accuracy_on(folder: Path, dataset_name: str, split: str | None, reader: str | None, device: str) -> float:
    """Return the held-out implicit accuracy of a finished run on a dataset; `check_pairs` says what is wrong with them."""
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
