"""A small, fair place to compare trainings on the embedded model: pairs, one run, its judgement. Results are kept, and not run twice.

Used by compare_methods.py and ablate_inversion.py. Taste, prompts and pictures are those of the embedded world of shapes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from diffalign.cli.demo.images import open_prompts, vote
from diffalign.data.importing import import_dataset
from diffalign.data.world.captions import parse
from diffalign.data.world.judge import mean_adherence, read
from diffalign.data.world.scenes import random_scene, render
from diffalign.data.world.tastes import User, taste_score
from diffalign.evaluate.heldout import heldout_log_ratios
from diffalign.evaluate.win_rate import win_rate
from diffalign.infer.load import load
from diffalign.infer.negative import negative_guidance
from diffalign.infer.sample import draw, grid
from diffalign.methods import METHODS
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.builders.image import pairs as build_pairs
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping
from diffalign.models.backbones.folders import without_t5
from diffalign.models.backbones.table import load_pipeline
from diffalign.models.lora_layers import Switch
from diffalign.models.reference import AdapterOff
from diffalign.objectives.metrics import implicit_accuracy
from diffalign.train.trainer import LOG, Trainer, trainer_for

TASTE, MODEL, SCALE = "high", "assets/tiny-sd", 4.0
TRAIN, HELDOUT, EVAL, TUNE = 384, 100, 200, 100  # pairs to train on, pairs to classify, prompts to judge and to tune on
DRAWS = 4  # random times at which a held-out pair is classified
BASE = {"rank": 8, "train_batch_size": 16, "checkpointing_steps": 10**6}


@dataclass(frozen=True, slots=True)
class Run:
    """One training: which pairs, which method with what changed, how long, from which seed; judged on `prompts` pictures."""

    data: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 150
    seed: int = 0
    prompts: int = EVAL
    tuning: bool = False  # judged on prompts of its own, so that what is chosen by it is not chosen on the evaluation

    @property
    def key(self) -> str:
        """Return a hash of the run's own settings; choose another root where a method's defaults or the constants above change."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class Arena:
    """Pairs and results under one folder."""

    def __init__(self, root: Path, model: str = MODEL, taste: str = TASTE) -> None:
        self.root, self.model, self.taste = root, model, taste
        self.length = 1 if without_t5(model) else None  # of a T5 prompt
        prompts = open_prompts(taste, TRAIN + EVAL + TUNE, np.random.default_rng([0, 0]))
        self.train_prompts, self.eval_prompts, self.tune_prompts = prompts[:TRAIN], prompts[TRAIN : TRAIN + EVAL], prompts[TRAIN + EVAL :]
        (root / "results").mkdir(parents=True, exist_ok=True)

    def _path(self, run: Run) -> Path:
        return self.root / "results" / f"{run.key}.json"

    def has(self, run: Run) -> bool:
        """Return whether `run` was run before."""
        return self._path(run).exists()

    def result(self, run: Run) -> dict[str, Any]:
        """Return what `run` gave: from the folder if it was run before."""
        path = self._path(run)
        if not self.has(run):
            facts = asdict(run) | self._play(run)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
            temporary.replace(path)
        return json.loads(path.read_text())

    def table(self, kind: str) -> Path:
        """Return the table of pairs of a `kind` (`off`, `on`, `near`; `heldout` after one of them), made if it is not there yet."""
        path = self.root / "tables" / kind
        if not path.exists():
            rows = self._rows(kind)
            source = self.root / f"{kind.replace('/', '_')}.parquet"
            pq.write_table(pa.Table.from_pylist(rows), source)
            path.parent.mkdir(parents=True, exist_ok=True)
            import_dataset(str(source), path, reader="pickapic")
        return path

    def prepare(self, kinds: Sequence[str], seeds: Sequence[int]) -> None:
        """Make what several processes would otherwise make at once: tables, their latents, and the base model's pictures."""
        for seed, tuning in [*((seed, False) for seed in seeds), (0, True)]:
            self.base(seed, tuning)
        for kind in (*kinds, *(f"heldout-{kind}" for kind in ("off", "on") if kind in kinds)):
            config = self._config(Run(kind, "diffusion_dpo"))
            trainer_for(config)

    def _config(self, run: Run) -> TrainConfig:
        own: dict[str, Any] = {
            "method": run.method,
            "max_train_steps": run.steps,
            "seed": run.seed,
            "dataset_name": str(self.table(run.data)),
        }
        own |= {"output_dir": str(self.root / "runs" / run.key), "overwrite_output_dir": True}
        own |= {"pretrained_model_name_or_path": self.model, "max_sequence_length": self.length}
        return from_mapping({**BASE, **own, **run.options}, "arena")

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        held, kind = kind.startswith("heldout-"), kind.removeprefix("heldout-")
        prompts, seed = (self.eval_prompts[:HELDOUT], 7) if held else (self.train_prompts, 3)
        rng = np.random.default_rng([seed, 5])
        if kind == "on":
            pipe = load_pipeline(self.model)
            first, second = (self.pictures(pipe, prompts, 100_000 * (seed + side), "draw pairs") for side in (0, 1))
        else:
            drawn = [_drawings(prompt, rng, near=kind == "near" and i % 2 == 0) for i, prompt in enumerate(prompts)]
            first, second = ([pair[side] for pair in drawn] for side in (0, 1))
        return vote(prompts, first, second, User({self.taste: 1.0}), seed)

    def _play(self, run: Run) -> dict[str, Any]:
        config = self._config(run)
        trainer = trainer_for(config)
        denoiser = trainer.network
        with _counted(denoiser) as seen:
            trainer.fit()
        per_record = seen["rows"] / (run.steps * config.train_batch_size)
        log = [json.loads(line) for line in (trainer.output_dir / LOG).read_text().splitlines()]
        facts = {"evaluations": round(per_record, 2), "step_seconds": round(float(np.median(trainer.seconds)), 3)}
        logged = ("loss", "implicit_acc", "log_ratio/chosen", "log_ratio/rejected", "score/chosen")
        facts |= {f"train/{name}": round(_tail(log, name), 5) for name in logged}
        facts["train/first_score"] = round(float(np.mean([line["score/chosen"] for line in log[:5]])), 5)
        facts["skipped"] = trainer.guard.skipped
        denoiser.eval()
        facts |= self._classify(trainer, run)
        pipe = trainer.parts.backbone.pipeline()
        negative = METHODS[run.method].inference == "negative_guidance"
        with negative_guidance(pipe, "default") if negative else contextlib.nullcontext():
            images = self.pictures(pipe, self.prompts(run), run.seed * 1000, "draw aligned")
        grid(images[:32], 16).save(self.root / "results" / f"{run.key}.png")
        return facts | self.judge(self.prompts(run), images, self.base(run.seed, run.tuning))

    def steered(self, positive: Run, negative: Run, alpha: float = 1.0, known: bool = False) -> dict[str, Any] | None:
        """Return how `negative`'s guidance on top of `positive` compares with plain guidance on it, same scale and noise.

        With `known`, None where it was not compared before.
        """
        path = self.root / "results" / f"{positive.key}-{negative.key}-{alpha:g}.json"
        if not path.exists() and known:
            return None
        if not path.exists():
            under, over = (self.root / "runs" / run.key for run in (positive, negative))
            drawn = []
            for pipe in (load(under), load(over, positive=under, alpha=alpha)):
                drawn.append(self.pictures(pipe, self.prompts(positive), positive.seed * 1000, "draw steered"))
            grid([*drawn[0][:16], *drawn[1][:16]], 16).save(path.with_suffix(".png"))
            path.write_text(json.dumps(self.judge(self.prompts(positive), drawn[1], scores(drawn[0], self.taste))))
        return json.loads(path.read_text())

    def prompts(self, run: Run) -> list[str]:
        """Return the prompts that `run` is judged on."""
        return (self.tune_prompts if run.tuning else self.eval_prompts)[: run.prompts]

    def _classify(self, trainer: Trainer, run: Run) -> dict[str, float]:
        """Return held-out log-ratios to the base and their accuracy, the same measure for every method."""
        held = str(self.table("heldout-on" if run.data == "on" else "heldout-off"))
        config = self._config(Run(run.data, "diffusion_dpo"))
        view, model = open_dataset(replace(config, dataset_name=held), trainer.parts.recipe), trainer.parts.backbone
        parts = replace(trainer.parts, pairs=build_pairs(config, view, model), reference=AdapterOff(model.denoiser, Switch(model.denoiser)))
        ratios = heldout_log_ratios(parts, draws=DRAWS, seed=1)
        return {
            "heldout/implicit_acc": round(float(implicit_accuracy(ratios)), 4),
            "heldout/chosen": round(float(ratios[:, 0].mean()), 6),
            "heldout/rejected": round(float(ratios[:, 1].mean()), 6),
        }

    def judge(self, prompts: Sequence[str], images: Sequence[Image.Image], base: Mapping[str, list[float]]) -> dict[str, Any]:
        """Return how `images` compare with the base's scores, draw by draw: by taste, whose scores are listed, and by form."""
        found = scores(images, self.taste)
        won = win_rate(base["taste"][: len(images)], found["taste"], prompts)
        formed = win_rate(base["form"][: len(images)], found["form"], prompts)
        return {
            "win_rate": round(won.rate, 4),
            "low": round(won.low, 4),
            "high": round(won.high, 4),
            "adherence": round(mean_adherence(prompts, images), 4),
            "taste": round(float(np.mean(found["taste"])), 4),
            "form_win_rate": round(formed.rate, 4),
            "form_low": round(formed.low, 4),
            "form_high": round(formed.high, 4),
            "tastes": found["taste"],
        }

    def base(self, seed: int, tuning: bool = False) -> dict[str, list[float]]:
        """Return the base model's scores, drawn from the same noise as every run of `seed`."""
        path = self.root / f"base-{'tune-' if tuning else ''}{seed}.json"
        if not path.exists():
            prompts = self.tune_prompts if tuning else self.eval_prompts
            images = self.pictures(load_pipeline(self.model), prompts, seed * 1000, "draw base")
            grid(images[:32], 16).save(path.with_suffix(".png"))
            path.write_text(json.dumps(scores(images, self.taste) | {"adherence": [mean_adherence(prompts, images)]}))
        return json.loads(path.read_text())

    def pictures(self, pipe: Any, prompts: Sequence[str], seed: int, label: str) -> list[Image.Image]:
        """Return one picture for each prompt, from noises that count up from `seed`."""
        seeds = range(seed, seed + len(prompts))
        return draw(pipe, prompts, seeds, guidance_scale=SCALE, max_sequence_length=self.length, label=label)


def scores(images: Sequence[Image.Image], taste: str = TASTE) -> dict[str, list[float]]:
    """Return each picture's taste score, and its form: how far its outline is that of the nearest shape (overlap in [0, 1])."""
    readings = [read(image) for image in images]
    return {"taste": [taste_score(taste, reading) for reading in readings], "form": [reading.overlap for reading in readings]}


def _drawings(prompt: str, rng: np.random.Generator, near: bool) -> tuple[Image.Image, Image.Image]:
    """Return two drawings that the renderer, not the model, makes of a prompt; `near` ones stand at the same place."""
    named = parse(prompt)
    scene = random_scene(rng, **named)
    other = random_scene(rng, **named, **({"position": scene.position} if near else {}))
    return render(scene, rng), render(other, rng)


@contextlib.contextmanager
def _counted(model: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Count the images that pass through the network."""
    seen: dict[str, float] = {"rows": 0.0}

    def count(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen["rows"] += len(inputs[0] if inputs else named["hidden_states"])

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _tail(log: list[dict[str, float]], name: str) -> float:
    return float(np.mean([line.get(name, float("nan")) for line in log[-20:]]))


def play_all(arena: Arena, runs: Sequence[Run], part: str, label: str) -> list[dict[str, Any]]:
    """Run the i-th of n blocks of `runs` (`part` "i/n"; the others are expected from other processes), return what is there."""
    index, count = (int(word) for word in part.split("/"))
    torch.set_flush_denormal(True)
    for position in range(len(runs) * index // count, len(runs) * (index + 1) // count):
        run, start = runs[position], time.perf_counter()
        facts = arena.result(run)
        print(f"{label} {position + 1}/{len(runs)} {run.data} {run.method} {dict(run.options)} seed {run.seed} steps {run.steps}: "
              f"win {facts['win_rate']:.3f} [{facts['low']:.3f}, {facts['high']:.3f}] adherence {facts['adherence']:.3f} "
              f"({time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
    return [arena.result(run) for run in runs if arena.has(run)]
