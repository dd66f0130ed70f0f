"""The loop for the model that writes prompts: rewrites -> pictures -> a taste's pairs -> Sem-DPO, and DPO beside it -> report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

import diffalign
from diffalign.cli.demo.options import TextQuickstartConfig
from diffalign.cli.demo.report import Clock, HeldoutPictures, fresh, write_report
from diffalign.cli.demo.rewriting import Rewrite, Studio, attribute_distance, gain, preferences
from diffalign.core.errors import ConfigError, check_name
from diffalign.core.runs import Run
from diffalign.data.table import write_table
from diffalign.data.world.captions import parse
from diffalign.data.world.rewrites import short_prompts
from diffalign.data.world.tastes import OPEN_ATTRIBUTES, TASTES
from diffalign.evaluate.statistics import ScorerResults
from diffalign.evaluate.texts import heldout
from diffalign.evaluate.win_rate import win_rate
from diffalign.infer.load import load
from diffalign.infer.text.meaning import SentenceDistance
from diffalign.infer.text.rewriter import Rewriter
from diffalign.methods.checks import check_keys
from diffalign.methods.config import TrainConfig
from diffalign.models.backbones.table import load_pipeline
from diffalign.models.text.network import load_language_model
from diffalign.train.align import train
from diffalign.train.trainer import LOG

HELDOUT = 100  # prompts whose pairs the run ranks
WRITTEN = 8  # rewrites of each held-out prompt that its meaning is measured on; one of them is drawn
RUNS = {"aligned": "train", "plain": "plain"}  # the folder of each run: with the weight of meaning, and without


class TextQuickstart:
    """One run of the loop; every phase is a method, and does what a user's script would."""

    def __init__(self, config: TextQuickstartConfig, command: str) -> None:
        check_name("taste", config.taste, TASTES)
        if min(config.train_prompts, config.eval_prompts, config.rewrites_per_prompt - 1, config.seed + 1) < 1:
            raise ConfigError("quickstart needs at least one train and one eval prompt, two rewrites a prompt, and a seed of zero or more")
        prompts = short_prompts()
        if config.train_prompts + config.eval_prompts > len(prompts):
            raise ConfigError(f"there are {len(prompts)} short prompts; asked for {config.train_prompts + config.eval_prompts}")
        self.config, self.command = config, command
        self.folder, self.clock = Path(config.output_dir), Clock()
        order = np.random.default_rng([config.seed, 0]).permutation(len(prompts))[: config.train_prompts + config.eval_prompts]
        shuffled = [prompts[i] for i in order]
        self.train_prompts, self.eval_prompts = shuffled[: config.train_prompts], shuffled[config.train_prompts :]
        self.training = {who: self._training(folder, weighted=who == "aligned") for who, folder in RUNS.items()}

    def run(self) -> Path:
        """Return the path of report.html."""
        torch.set_flush_denormal(True)
        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.disable_progress_bar()
        fresh(self.folder)
        start = time.perf_counter()
        base = Rewriter(*self._base())
        studio = self._studio()
        with self.clock.phase("rewrite and draw pairs"):
            pairs = self._write_pairs("pairs", base, studio, self.train_prompts, 0)
            unseen = self._write_pairs("heldout", base, studio, self.eval_prompts[:HELDOUT], 1)
        for who, config in self.training.items():
            with self.clock.phase(f"train {who}"):
                train(config)
        writers = {"base": base, **{who: load(self.folder / name) for who, name in RUNS.items()}}
        with self.clock.phase("rewrite and draw held-out prompts"):
            shown = {who: self._rewrites(studio, writer, self.eval_prompts, 1, 2, f"draw {who}") for who, writer in writers.items()}
            kept = {who: self._kept(writer) for who, writer in writers.items()}
        pictures = HeldoutPictures(self.eval_prompts, {who: [one.image for one in made] for who, made in shown.items()}, self.config.taste)
        scores = [*pictures.scores(), _meaning(kept)]
        facts = self._facts(shown, kept) | pictures.facts(scores, self.config.seed)
        facts |= {"pairs_train": pairs, "steps": self.config.max_train_steps}
        if unseen:
            with self.clock.phase("held-out accuracy"):
                ranked = heldout(Run.open(self.folder / RUNS["aligned"]), str(self.folder / "heldout"), None, None, "cpu")
            facts |= {"implicit_accuracy_heldout": round(ranked["implicit_acc"], 4), "pairs_heldout": unseen}
        self.clock.seconds["total"] = round(time.perf_counter() - start, 1)
        texts = {who: [one.text for one in made] for who, made in shown.items()}
        log = self.folder / RUNS["aligned"] / LOG
        return write_report(self.folder, facts | {"seconds": self.clock.seconds}, pictures.shown(scores, texts), log)

    def _base(self) -> tuple[Any, Any]:
        model = load_language_model(self.config.model, torch.device("cpu"))
        return model.network, model.tokenizer

    def _studio(self) -> Studio:
        config = self.config
        meaning = attribute_distance if config.distance == "attributes" else SentenceDistance.from_pretrained(config.distance)
        return Studio(load_pipeline(config.image_model), config.taste, meaning, config.num_inference_steps, config.guidance_scale)

    def _rewrites(self, studio: Studio, writer: Rewriter, prompts: Sequence[str], each: int, stream: int, label: str) -> list[Rewrite]:
        """Return `each` rewrites of every prompt, drawn from the same noise: what differs is the words alone."""
        first = self._seed(stream)
        texts = writer(prompts, seed=first, num_return_sequences=each)
        seeded = [(prompt, first + i) for i, prompt in enumerate(prompts) for _ in range(each)]
        return studio.judge([prompt for prompt, _ in seeded], texts, [seed for _, seed in seeded], label)

    def _write_pairs(self, name: str, base: Rewriter, studio: Studio, prompts: Sequence[str], stream: int) -> int:
        """Write the table `name` of judged rewrites and return how many pairs it holds that are clear enough."""
        records = preferences(self._rewrites(studio, base, prompts, self.config.rewrites_per_prompt, stream, f"draw {name}"), name)
        write_table(self.folder / name, records)
        tastes = [[candidate.scores["taste"] for candidate in record.candidates] for record in records]
        return sum(max(scores) - min(scores) >= self.config.min_gap for scores in tastes)

    def _kept(self, writer: Rewriter) -> list[float]:
        """Return for each held-out prompt the share of its attributes that rewrites keep, the mean of several."""
        prompts = [prompt for prompt in self.eval_prompts for _ in range(WRITTEN)]
        texts = writer(self.eval_prompts, seed=self._seed(3), num_return_sequences=WRITTEN)
        return list(1.0 - np.reshape(attribute_distance(prompts, texts), (-1, WRITTEN)).mean(axis=1))

    def _seed(self, stream: int) -> int:
        return self.config.seed * 1_000_003 + stream * 100_003

    def _training(self, folder: str, *, weighted: bool) -> TrainConfig:
        """Return a training config, checked before the first picture is drawn: pairs of best and worst by taste."""
        config = self.config
        weight = [{"semantic_weight": {"score": "distance", "alpha": config.alpha}}] if weighted else []
        clear = {"min_margin": {"margin": config.min_gap, "score": "taste"}}
        training = TrainConfig(
            pretrained_model_name_or_path=config.model,
            dataset_name=str(self.folder / "pairs"),
            method="dpo",
            transforms=[{"pairs": {"how": "best_worst", "score": "taste"}}, "drop_ties", clear, "orient", *weight],
            beta=config.beta,
            output_dir=str(self.folder / folder),
            learning_rate=config.learning_rate,
            rank=config.rank,
            max_train_steps=config.max_train_steps,
            train_batch_size=config.train_batch_size,
            seed=config.seed,
        )
        check_keys(training)
        return training

    def _facts(self, shown: Mapping[str, Sequence[Rewrite]], kept: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Return win rates by the taste, and gains in taste and in meaning kept, against the base and against training without weights."""
        prompts, seed = self.eval_prompts, self.config.seed
        by: dict[str, Mapping[str, Sequence[float]]] = {
            "taste": {who: [one.taste for one in made] for who, made in shown.items()},
            "adherence": {who: [one.adherence for one in made] for who, made in shown.items()},
            "kept": kept,
        }
        closed = set(OPEN_ATTRIBUTES[self.config.taste])
        left = [i for i, prompt in enumerate(prompts) if not closed & parse(prompt).keys()]
        won, open_won, plain_won = (
            win_rate([by["taste"]["base"][i] for i in rows], [by["taste"][who][i] for i in rows], [prompts[i] for i in rows], seed)
            for who, rows in (("aligned", range(len(prompts))), ("aligned", left), ("plain", range(len(prompts))))
        )
        gains = {
            "taste_gain": gain(by["taste"]["base"], by["taste"]["aligned"], seed),
            "kept_gain": gain(by["kept"]["base"], by["kept"]["aligned"], seed),
            "kept_over_plain": gain(by["kept"]["plain"], by["kept"]["aligned"], seed),
            "taste_over_plain": gain(by["taste"]["plain"], by["taste"]["aligned"], seed),
        }
        means = {f"{name}_{who}": round(float(np.mean(scores)), 4) for name, of in by.items() for who, scores in of.items()}
        return {
            "command": self.command,
            "version": diffalign.__version__,
            "win_rate": round(won.rate, 4),
            "ci95": [round(won.low, 4), round(won.high, 4)],
            "prompts_heldout": won.prompts,
            "win_rate_open": round(open_won.rate, 4),
            "ci95_open": [round(open_won.low, 4), round(open_won.high, 4)],
            "prompts_open": open_won.prompts,
            "win_rate_plain": round(plain_won.rate, 4),
            "ci95_plain": [round(plain_won.low, 4), round(plain_won.high, 4)],
            **{name: round(one.mean, 4) for name, one in gains.items()},
            **{f"{name}_ci95": [round(one.low, 4), round(one.high, 4)] for name, one in gains.items()},
            **means,
            **asdict(self.config),
            "method": "dpo",
            "runs": self._models(),
        }

    def _models(self) -> list[dict[str, str | None]]:
        """Return name, path and method of the models compared, the base first."""
        trained = (("aligned", "dpo with the weight of meaning"), ("plain", "dpo"))
        rows: list[dict[str, str | None]] = [{"name": "base", "path": self.config.model, "method": None}]
        return rows + [{"name": who, "path": str(self.folder / RUNS[who]), "method": method} for who, method in trained]


def _meaning(kept: Mapping[str, Sequence[float]]) -> ScorerResults:
    """Return the shares of meaning kept as a score; training weighs its pairs by them."""
    about = {"name": "meaning kept", "scale": "share of what the short prompt names that rewrites name, too", "licence": "Apache-2.0"}
    return ScorerResults(about, held_out=False, reward=False, values={who: np.reshape(shares, (-1, 1)) for who, shares in kept.items()})
