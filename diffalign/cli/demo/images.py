"""The whole loop on the embedded world: pictures -> a taste's votes -> Pick-a-Pic file -> import -> train -> win rate -> report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

import diffalign
from diffalign.cli.demo.options import QuickstartConfig
from diffalign.cli.demo.report import Clock, HeldoutPictures, fresh, write_report
from diffalign.core.errors import ConfigError, check_name
from diffalign.core.files import atomic_file
from diffalign.data.pictures import encode_image
from diffalign.data.world.captions import parse, random_caption
from diffalign.data.world.judge import mean_adherence
from diffalign.data.world.scenes import random_scene
from diffalign.data.world.tastes import OPEN_ATTRIBUTES, TASTES, User
from diffalign.evaluate.heldout import heldout_implicit_accuracy, learns_from_pairs
from diffalign.evaluate.statistics import ScorerResults
from diffalign.evaluate.win_rate import win_rate
from diffalign.infer.load import load
from diffalign.infer.sample import draw, grid
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.image import pairs as build_pairs
from diffalign.methods.checks import check_keys
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.backbones.folders import without_t5
from diffalign.models.backbones.table import load_pipeline
from diffalign.train.trainer import LOG, Trainer, make_trainer

SHOWN = 16  # pictures in a row of grid.png: base above, aligned below
AGAINST = 64  # prompts that name what the taste judges
PATIENCE = 20_000  # draws without a new caption


def open_prompts(taste: str, count: int, rng: np.random.Generator) -> list[str]:
    """Return distinct captions that do not name what `taste` judges, so that it has a say."""
    closed = OPEN_ATTRIBUTES[taste]
    prompts: dict[str, int] = {}
    for number in range(200 * count):
        scene = random_scene(rng)
        prompts.setdefault(random_caption(scene, rng, without=closed), number)
        if len(prompts) == count:
            return list(prompts)
        if number - next(reversed(prompts.values())) > PATIENCE:
            break
    raise ConfigError(f"there are only about {len(prompts)} captions that leave `{taste}` open; asked for {count}. Use fewer prompts.")


def vote(
    prompts: Sequence[str], first: Sequence[Image.Image], second: Sequence[Image.Image], user: User, seed: int, model: str = "tiny-sd"
) -> list[dict[str, Any]]:
    """Return one row a prompt in Pick-a-Pic's columns, labelled by `user`, on pictures of `model`."""
    rng = np.random.default_rng([seed, 1])
    rows = []
    for i, (prompt, a, b) in enumerate(zip(prompts, first, second, strict=True)):
        label = user.vote(a, b, rng)
        uids = (f"{i:06d}-0", f"{i:06d}-1")
        rows.append(
            {
                "are_different": True,
                "best_image_uid": "tie" if label == 0.5 else uids[0 if label == 1.0 else 1],
                "caption": prompt,
                "created_at": datetime(2026, 1, 1, tzinfo=timezone.utc).replace(tzinfo=None),
                "has_label": True,
                "image_0_uid": uids[0],
                "image_0_url": "",
                "image_1_uid": uids[1],
                "image_1_url": "",
                "jpg_0": encode_image(a),
                "jpg_1": encode_image(b),
                "label_0": label,
                "label_1": 1.0 - label,
                "ps_score_0": user.utility(a),
                "ps_score_1": user.utility(b),
                "scored_by": f"the taste {', '.join(user.weights)}",
                "model_0": model,
                "model_1": model,
                "ranking_id": i,
                "user_id": 0,
                "num_example_per_prompt": 1,
                "__index_level_0__": i,
            }
        )
    return rows


class Quickstart:
    """One run of the loop; every phase is a method, and does what a user's script would."""

    def __init__(self, config: QuickstartConfig, command: str) -> None:
        check_name("taste", config.taste, TASTES)
        if min(config.train_prompts, config.eval_prompts, config.images_per_prompt - 1, config.seed + 1) < 1:
            raise ConfigError("quickstart needs at least one train and one eval prompt, two images a prompt, and a seed of zero or more")
        self.config, self.command = config, command
        self.folder = Path(config.output_dir)
        self.training = self._training()
        self.clock = Clock()
        rng = np.random.default_rng([config.seed, 0])
        prompts = open_prompts(config.taste, config.train_prompts + config.eval_prompts, rng)
        self.train_prompts, self.eval_prompts = prompts[: config.train_prompts], prompts[config.train_prompts :]
        self.user = User({config.taste: 1.0}, config.temperature)

    def run(self) -> Path:
        """Return the path of report.html."""
        torch.set_flush_denormal(True)
        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.disable_progress_bar()  # the embedded model loads in a moment
        fresh(self.folder)
        start = time.perf_counter()
        with self.clock.phase("sample pairs"):
            heldout, base = self._sample_pairs()
        trainer = self._train()
        with self.clock.phase("held-out accuracy"):
            accuracy = self._heldout_accuracy(trainer, heldout)
        with self.clock.phase("sample aligned"):
            pipe = load(self.folder / "train")
            aligned = self._draw(pipe, self.eval_prompts, 2, "draw aligned")
        grid([*base[:SHOWN], *aligned[:SHOWN]], SHOWN).save(self.folder / "grid.png")
        with self.clock.phase("prompts against the taste"):
            named = self._against(pipe)
        with self.clock.phase("compare"):
            pictures = HeldoutPictures(self.eval_prompts, {"base": base, "aligned": aligned}, self.config.taste)
            scores = pictures.scores()
            facts = self._facts(pictures, scores) | pictures.facts(scores, self.config.seed) | accuracy
        facts |= {f"adherence_named_{who}": share for who, share in named.items()}
        facts |= {"checks": {who: {"adherence where the prompt names what the taste judges": share} for who, share in named.items()}}
        facts |= {"steps": trainer.step, "skipped_steps": trainer.guard.skipped}
        self.clock.seconds["total"] = round(time.perf_counter() - start, 1)
        log = self.folder / "train" / LOG
        return write_report(self.folder, facts | {"seconds": self.clock.seconds}, pictures.shown(scores, {}), log)

    def _draw(self, pipe: Any, prompts: Sequence[str], stream: int, label: str) -> list[Image.Image]:
        config = self.config
        seeds = [config.seed * 1_000_003 + stream * 100_003 + i for i in range(len(prompts))]
        settings = {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
        return draw(pipe, prompts, seeds, **settings, max_sequence_length=self.training.max_sequence_length, label=label)

    def _sample_pairs(self) -> tuple[Path, list[Image.Image]]:
        """Write pairs.parquet and heldout.parquet; return the latter and the base pictures of the evaluation prompts."""
        pipe = load_pipeline(self.config.model)
        streams = [0, 1, *range(10, 8 + self.config.images_per_prompt)]
        shown = [self._draw(pipe, self.train_prompts, stream, "draw pairs") for stream in streams]
        base = self._draw(pipe, self.eval_prompts, 2, "draw base")
        other = self._draw(pipe, self.eval_prompts[:100], 3, "draw held-out pairs")
        heldout = self.folder / "heldout.parquet"
        seed, name = self.config.seed, Path(self.config.model).name
        votes = [vote(self.train_prompts, a, b, self.user, seed, name) for a, b in itertools.pairwise(shown)]
        _write_pairs(self.folder / "pairs.parquet", list(itertools.chain.from_iterable(votes)))
        _write_pairs(heldout, vote(self.eval_prompts[:100], base[:100], other, self.user, seed + 1, name))
        return heldout, base

    def _training(self) -> TrainConfig:
        """Return the training config, checked before the first picture is drawn."""
        config = self.config
        training = TrainConfig(
            pretrained_model_name_or_path=config.model,
            dataset_name=str(self.folder / "pairs.parquet"),
            method=config.method,
            beta=500.0 if config.beta is None and config.method == "diffusion_dpo" else config.beta,
            output_dir=str(self.folder / "train"),
            learning_rate=config.learning_rate,
            rank=config.rank,
            max_train_steps=config.max_train_steps,
            train_batch_size=config.train_batch_size,
            seed=config.seed,
            validation_steps=100,
            max_sequence_length=1 if without_t5(config.model) else None,
        )
        check_keys(training)
        return training

    def _train(self) -> Trainer:
        training = replace(self.training, validation_prompts=self.eval_prompts[:8])
        recipe = recipe_of(training)
        with self.clock.phase("import"):
            view = open_dataset(training, recipe)
        with self.clock.phase("cache"):
            trainer = make_trainer(training, recipe, view)
        with self.clock.phase("train"):
            trainer.fit()
        return trainer

    def _heldout_accuracy(self, trainer: Trainer, heldout: Path) -> dict[str, Any]:
        """Return the implicit accuracy on held-out pairs; None for a method that compares no pictures."""
        config = replace(trainer.config, dataset_name=str(heldout), output_dir=str(self.folder / "heldout"), trajectory_cache=0)
        view = open_dataset(config, trainer.parts.recipe)
        self.pairs = (len(trainer.parts.pairs), len(view))
        if not learns_from_pairs(config.method):
            return {"implicit_accuracy_heldout": None}
        parts = replace(trainer.parts, pairs=build_pairs(config, view, trainer.parts.backbone))
        return heldout_implicit_accuracy(parts).facts()

    def _facts(self, pictures: HeldoutPictures, scores: Sequence[ScorerResults]) -> dict[str, Any]:
        """Return the numbers of the report: of the held-out prompts, the pairs and the settings."""
        config, (taste, adherence) = self.config, scores
        base, aligned = (taste.values[who].ravel().tolist() for who in pictures.images)
        won = win_rate(base, aligned, pictures.prompts, config.seed)
        return {
            "command": self.command,
            "version": diffalign.__version__,
            "win_rate": round(won.rate, 4),
            "ci95": [round(won.low, 4), round(won.high, 4)],
            "prompts_heldout": won.prompts,
            **{f"adherence_{who}": round(float(np.nanmean(adherence.values[who])), 4) for who in pictures.images},
            **{f"taste_{who}": round(float(np.mean(taste.values[who])), 4) for who in pictures.images},
            "pairs_train": self.pairs[0],
            "pairs_heldout": self.pairs[1],
            **asdict(config),
            "beta": self.training.beta,
            "max_sequence_length": self.training.max_sequence_length,
            "runs": [
                {"name": "base", "path": config.model, "method": None},
                {"name": "aligned", "path": self.training.output_dir, "method": config.method},
            ],
        }

    def _against(self, aligned: Any) -> dict[str, float]:
        """Return the adherence of both models to prompts that name what the taste judges: it falls where a word was unlearned."""
        rng = np.random.default_rng([self.config.seed, 2])
        named = set(OPEN_ATTRIBUTES[self.config.taste])
        prompts = [p for p in (random_caption(random_scene(rng), rng) for _ in range(2000)) if named <= parse(p).keys()]
        prompts = list(dict.fromkeys(prompts))[:AGAINST]
        models = {"base": load_pipeline(self.config.model), "aligned": aligned}
        drawn = {name: self._draw(pipe, prompts, 4, f"draw {name}, named") for name, pipe in models.items()}
        return {name: round(mean_adherence(prompts, images), 4) for name, images in drawn.items()}


def _write_pairs(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
