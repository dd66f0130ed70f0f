"""The implicit accuracy of a trained image model: how many pairs it has not seen it ranks as people did."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.intervals import sign_test
from diffalign.core.progress import progress
from diffalign.core.runs import Run
from diffalign.core.specs import single
from diffalign.data.readers import READERS
from diffalign.data.readers.base import read
from diffalign.data.readers.detect import detect
from diffalign.data.sampler import positions_by_bucket, sample_generator
from diffalign.data.table import is_table, read_table
from diffalign.infer.users.personal import restore
from diffalign.methods import METHODS
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.image import parts
from diffalign.methods.config_file import config_of
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import recipe_of
from diffalign.models import adapters
from diffalign.models.control import FOLDER as CONTROLNET
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.trajectory import forward
from diffalign.objectives.metrics import implicit_accuracy


@torch.no_grad()
def heldout_log_ratios(parts: Parts, draws: int = 10, batch_size: int = 32, seed: int = 0) -> Tensor:
    """Return the log-ratio of every candidate of the pairs in `parts`, (N, K), averaged over `draws` random times.

    Under plain noise whatever trajectory the method trains on, so that methods can be compared; plain scores without a reference.
    """
    policy = parts.backbone.denoiser
    policy.eval()
    likelihood, ratios = DiffusionLikelihood(parts.backbone.path, parts.backbone.predict, forward), {}
    for positions in progress(positions_by_bucket(parts.pairs, batch_size), desc="judge held-out pairs", unit="batches"):
        batch = parts.pairs.to_batch([parts.pairs[p, 0] for p in positions]).to(next(policy.parameters()).device)
        total = torch.zeros(batch.x0.shape[:2], device=batch.x0.device)
        for repeat in range(draws):
            query = likelihood.prepare(policy, batch, [sample_generator(seed, p * draws + repeat) for p in positions])
            reference = parts.reference.score(likelihood, query)
            scores = likelihood.scores(likelihood.score(policy, query), reference, batch)
            total += (scores.policy if scores.reference is None else scores.log_ratio) / draws
        ratios |= zip(positions, total.cpu(), strict=True)
    return torch.stack([ratios[position] for position in range(len(ratios))])


@dataclass(frozen=True, slots=True)
class PairAccuracy:
    """How many pairs a model ranks as people did: those whose preferred image has the larger log-ratio (2311.12908, appendix)."""

    accuracy: float
    """Share of `right`, ties counting one half."""
    right: int
    wrong: int
    tied: int

    @classmethod
    def of(cls, log_ratios: Tensor) -> PairAccuracy:
        """Return the accuracy of log-ratios (N, 2), the preferred image first."""
        accuracy, gaps = float(implicit_accuracy(log_ratios)), log_ratios[:, 0] - log_ratios[:, 1]
        right, wrong = int((gaps > 0).sum()), int((gaps < 0).sum())
        return cls(accuracy, right, wrong, len(gaps) - right - wrong)

    def facts(self) -> dict[str, float | dict[str, float]]:
        """Return what `eval.json` has of it."""
        counts = {"right": self.right, "wrong": self.wrong, "tied": self.tied, "sign_test_p": sign_test(self.right, self.wrong)}
        return {"implicit_accuracy_heldout": round(self.accuracy, 4), "heldout_pairs": counts}


def heldout_implicit_accuracy(parts: Parts) -> PairAccuracy:
    """Return how many of the pairs in `parts` the model ranks as people did."""
    return PairAccuracy.of(heldout_log_ratios(parts))


def learns_from_pairs(method: str) -> bool:
    """Return whether a method compares pictures; Self-NPO sees prompts alone."""
    return "prompt_only" not in [single("transform", spec)[0] for spec in METHODS[method].transforms]


def check_pairs(run: Run, dataset_name: str, split: str | None, reader: str | None) -> None:
    """Check a dataset for `accuracy_on` up to its first row. Raises ConfigError for a method that ranks no pairs."""
    if not learns_from_pairs(run.method):
        raise ConfigError(f"{run.folder}: `{run.method}` learns from prompts alone and ranks no pairs; leave out --dataset_name")
    if "slider" in (run.facts.get("user_encoder") or {}):
        raise ConfigError(f"{run.folder}: sliders draw as they are set, and rank no pairs of anybody; leave out --dataset_name")
    if is_table(dataset_name):
        read_table(dataset_name)
        return
    name = reader or detect(dataset_name, split)
    if name not in READERS:
        raise ConfigError(f"there is no reader `{name}`.{did_you_mean(name, READERS)}")
    next(read(READERS[name], dataset_name, split=split), None)


def accuracy_on(run: Run, dataset_name: str, split: str | None, reader: str | None, device: str) -> PairAccuracy:
    """Return the implicit accuracy of a finished run on a dataset, which `check_pairs` has passed."""
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
    config = replace(config_of(run), **plain, dataset_name=dataset_name, dataset_split_name=split, reader=reader, cache="off")
    with tempfile.TemporaryDirectory() as temporary:
        elsewhere = replace(config, output_dir=temporary)
        recipe = recipe_of(elsewhere)
        built = parts(elsewhere, recipe, open_dataset(elsewhere, recipe), torch.device(device), fit=False)
        if run.personal:
            restore(built.backbone.denoiser, run.folder)
        elif run.conditioned:
            adapters.load_result(built.backbone.denoiser.controlnet, run.folder, full=True, component=CONTROLNET)
        else:
            adapters.load_results(built.backbone.adapted, run.folder, full=run.full)
        return heldout_implicit_accuracy(built)
