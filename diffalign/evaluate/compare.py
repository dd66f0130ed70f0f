"""Comparing finished runs with their base: draw, score, judge; in shards, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError, ConfigError, check_name
from diffalign.core.files import atomic_file, plain, write
from diffalign.core.keys import check_ranges, keys_for
from diffalign.core.processes import process_state
from diffalign.core.progress import progress
from diffalign.core.runs import Run
from diffalign.core.specs import Spec, bind
from diffalign.core.version import __version__
from diffalign.data.pictures import decode_image
from diffalign.data.table import read_table
from diffalign.data.world.checks import checks, is_caption, shares
from diffalign.data.world.tastes import TASTES
from diffalign.evaluate.contestants import BASE, WHOM, Contestant, contestants, named
from diffalign.evaluate.heldout import accuracy_on, check_pairs
from diffalign.evaluate.options import EvalConfig
from diffalign.evaluate.pages.comparison import page
from diffalign.evaluate.pages.grid import Shown
from diffalign.evaluate.panel import Panel, panel
from diffalign.evaluate.statistics import ScorerResults, comparison
from diffalign.infer.sample import grid
from diffalign.infer.shards import Drawings, compare_drawings, distinct, draw_shards, score_drawings, verdicts_on
from diffalign.rewards import drift
from diffalign.rewards.table import compares

if TYPE_CHECKING:
    from accelerate import PartialState

IMAGES = "images"  # within the destination
LONGEST = 80  # letters of a result's name
HOW = keys_for(EvalConfig, "how")  # what decides how pictures are drawn
SHOWN, COLUMNS, SIDE = 32, 8, 256  # of grid.png: prompts, pictures in a row or a few more, and the longest side of each in pixels


def evaluate(
    config: EvalConfig, prompts: Sequence[str], *, command: str = "", user: Any = None, inputs: Sequence[bytes] = ()
) -> dict[str, Any] | None:
    """Return the facts of `eval.json`, and write it, `eval.html` and `grid.png`; None in all processes of a launch but the first.

    All models draw every prompt from the same noise; each prompt counts once. A comparison of other models than an earlier one is
    written beside it, under a name of its own. Without prompts the pairs of `dataset_name` are ranked, for an earlier one of the same run.

    Args:
        config: the run, what it is compared with, the scorers, and how pictures are drawn.
        prompts: what is drawn; equal ones once, and one instruction of several `inputs` as one where wins are counted.
        command: the command line, for the page.
        user: for personalised runs: whom they draw for, as `for_user` takes it.
        inputs: of runs of an edit model, the file of the picture that each prompt is drawn from.

    Raises ConfigError or CheckpointError, before any weight loads, for settings that a run does not take and folders without a model.

    Example:
        >>> evaluate(EvalConfig(output_dir="outputs/mine"), ["a red star"])["comparisons"][0]["verdict"]  # doctest: +SKIP
        'win'
    """
    prompts, inputs = distinct(prompts, inputs)
    _check(config, prompts, user)
    torch.set_flush_denormal(True)
    state, shown = process_state(), list[Shown]()
    device = config.device or str(state.device or "cpu")
    facts: dict[str, Any] = {"version": __version__, "command": command, "prompts": len(prompts)}
    if prompts:
        judges, models = _panel(config, prompts), contestants(config, user, device, inputs=bool(inputs))
        drawn = _drawn(config, judges, models, {m.name: _drawings(config, m, prompts, inputs) for m in models}, state, device)
        if state.is_main_process:
            _refuse_idle(models, drawn)
            scores = _scores(judges, drawn)
            facts |= _settings(config, models) | _results(config, scores, drawn, device)
            shown = _shown(scores, drawn)
    if not state.is_main_process:
        return None
    if config.dataset_name is not None:
        facts |= accuracy_on(Run.open(config.output_dir), config.dataset_name, config.dataset_split_name, config.reader, device).facts()
    return _written(destination(config), plain(facts), shown) if prompts else _added(config, destination(config), plain(facts))


def _written(folder: Path, facts: Mapping[str, Any], shown: Sequence[Shown]) -> dict[str, Any]:
    """Write a comparison, and return its facts, with the names of its files."""
    stem = name_of(folder, facts)
    for stale in (file for end in ("html", "json") for file in folder.glob(f".{stem}.{end}.*")):  # what a killed run had begun to write
        stale.unlink()
    files = {"page": f"{stem}.html", "result": f"{stem}.json", "grid": f"grid{stem.removeprefix('eval')}.png"}
    _write_grid(shown, folder / files["grid"])
    facts = {**facts, **files}
    write({folder / files["page"]: page(facts, shown), folder / files["result"]: json.dumps(facts, indent=2) + "\n"})
    return facts


def name_of(folder: Path, facts: Mapping[str, Any]) -> str:
    """Return the name, without ending, of a comparison's files: `eval`, with more models than a run and its base `eval-NAME-NAME`.

    Where that name is taken by a comparison of other models, or for another user, it gets a number: only a comparison of the same is
    replaced.
    """
    first = "-".join(["eval", *(run["name"] for run in facts["runs"][2:])])[:LONGEST]
    for name in itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2))):
        earlier = _read(folder / f"{name}.json")
        if all(earlier.get(key, facts.get(key)) == facts.get(key) for key in ("runs", "user")):
            return name
    raise AssertionError("the numbers have no end")


def _added(config: EvalConfig, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the accuracy on pairs, into an earlier comparison of the same run if there is one, and return the new facts."""
    path, run = folder / "eval.json", Path(config.output_dir).resolve()
    earlier = _read(path)
    same = config.destination is None or any(Path(one["path"]).resolve() == run for one in earlier.get("runs", [])[1:2])
    measured = {key: facts[key] for key in ("implicit_accuracy_heldout", "heldout_pairs")}
    facts = {**facts, "result": path.name}
    write({path: json.dumps({**earlier, **measured} if same and earlier.get("runs") else facts, indent=2) + "\n"})
    return facts


def _read(path: Path) -> dict[str, Any]:
    """Return the facts of an earlier evaluation, nothing where there is none."""
    return read_mapping(path) if path.is_file() else {}


def _drawn(
    config: EvalConfig, judges: Panel, models: Sequence[Contestant], drawn: dict[str, Drawings], state: PartialState, device: str
) -> dict[str, Drawings]:
    """Return the images of every model, drawn and scored: this process does its share, and waits for the others."""
    if config.overwrite and state.is_main_process:
        shutil.rmtree(destination(config) / IMAGES, ignore_errors=True)
    state.wait_for_everyone()
    share = range(state.process_index, len(drawn[BASE]), state.num_processes)
    for model in models:
        gc.collect()  # so that one model has left the memory before the next is loaded
        draw_shards(drawn[model.name], share, model.opened)
    for spec in judges.all:  # one is in memory at a time
        if compares(spec):
            for first, second in itertools.combinations(drawn.values(), 2):
                compare_drawings(first, second, share, spec, device)
        else:
            score_drawings(list(drawn.values()), share, spec, device)
    state.wait_for_everyone()
    return drawn


def _refuse_idle(models: Sequence[Contestant], drawn: Mapping[str, Drawings]) -> None:
    """Raise CheckpointError for a run that draws the base's very pictures: its rate of one half would say nothing of a training."""
    base, *others = models
    for run in (model for model in others if model.method is not None):
        pairs = zip(drawn[base.name].records(), drawn[run.name].records(), strict=True)
        if all([one.image for one in before.candidates] == [one.image for one in after.candidates] for before, after in pairs):
            raise CheckpointError(
                f"{run.path}: all {len(drawn[run.name].prompts)} prompts give the base's very pictures, so this run changes nothing that "
                "can be compared; was it trained at all, and at a learning rate above zero?"
            )


def destination(config: EvalConfig) -> Path:
    """Return the folder of the results."""
    return Path(config.output_dir) / "eval" if config.destination is None else Path(config.destination)


def _check(config: EvalConfig, prompts: Sequence[str], user: Any) -> None:
    """Check the settings as far as they go without a model. Raises ConfigError, or TableError and RecordError of the dataset."""
    check_ranges(config)
    bind("feature", drift.FEATURES, config.features, device="cpu")
    if config.taste is not None:
        check_name("taste", config.taste, TASTES)
    run = Run.open(config.output_dir)
    if useless := [option for option in keys_for(config, "drawn") if getattr(config, option) and not prompts]:
        raise ConfigError(f"`{useless[0]}` is for pictures; give --prompts to draw, or leave it out")
    if config.dataset_name is not None:
        check_pairs(run, config.dataset_name, config.dataset_split_name, config.reader)
    if user is not None and not prompts:
        why = "draws no pictures without --prompts" if run.personal else "is not personalised"
        raise ConfigError(f"a run of {run.method} {why}; leave out --user, --user_id, --pairs and --sliders")


def _panel(config: EvalConfig, prompts: Sequence[str]) -> Panel:
    paths = [Path(path) for path in (config.output_dir, *(named(value)[1] for value in config.runs))]
    runs = [Run.open(path) for path in paths if Run.is_in(path)]
    return panel(prompts, runs, scorers=config.scorers, reward=config.reward, taste=config.taste, trust=config.trust_scorers)


def _drawings(config: EvalConfig, model: Contestant, prompts: tuple[str, ...], inputs: tuple[bytes, ...]) -> Drawings:
    how: dict[str, Any] = {name: getattr(config, name) for name in HOW} | {"inputs": inputs}
    folder = destination(config) / IMAGES / model.name
    return Drawings(folder=folder, prompts=prompts, model=model.name, facts=model.facts, command="eval", overwrite=True, **how)


def _settings(config: EvalConfig, models: Sequence[Contestant]) -> dict[str, Any]:
    """Return what was compared, how it was drawn, and for whom."""
    runs = [{"name": model.name, "path": model.path, "method": model.method} for model in models]
    user = {name: getattr(config, name) for name in WHOM if getattr(config, name) is not None}
    return {**{name: getattr(config, name) for name in HOW}, "runs": runs, "user": user or None}


def _scores(judges: Panel, drawn: Mapping[str, Drawings]) -> list[ScorerResults]:
    """Return each scorer's scores of all models. Raises ConfigError where two scores have one name."""
    results: list[ScorerResults] = []
    for spec in judges.all:
        about, values, verdicts = _verdicts(spec, drawn) if compares(spec) else _marks(spec, drawn)
        if about["name"] in [one.name for one in results]:
            raise ConfigError(f"`scorers`: two of them give a score named `{about['name']}`; leave one out")
        held_out, reward, chose = judges.held_out(spec, about["name"]), judges.reward(spec), judges.chose(spec)
        results.append(ScorerResults(about, held_out, reward, values, chose, verdicts))
    return results


def _marks(spec: Spec, drawn: Mapping[str, Drawings]) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[tuple[str, str], np.ndarray]]:
    """Return what is known of a scorer, and its scores of every model's pictures."""
    scored = {who: drawings.scored(spec) for who, drawings in drawn.items()}
    about, audit = scored[BASE][0], sum((Counter(one.get("audit") or {}) for one, _ in scored.values()), Counter())
    return about | ({"audit": dict(audit)} if audit else {}), {who: values for who, (_, values) in scored.items()}, {}


def _verdicts(spec: Spec, drawn: Mapping[str, Drawings]) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[tuple[str, str], np.ndarray]]:
    """Return what is known of a judge, the mean chance of every model's pictures against all others', and its verdicts by two models."""
    pairs = {(one, other): verdicts_on(drawn[one], drawn[other], spec) for one, other in itertools.combinations(drawn, 2)}
    verdicts = {pair: chances for pair, (_, chances) in pairs.items()}
    audit = sum((Counter(about.get("audit") or {}) for about, _ in pairs.values()), Counter())
    fared = {
        who: np.mean([chances if who == pair[1] else 1.0 - chances for pair, chances in verdicts.items() if who in pair], axis=0)
        for who in drawn
    }
    return next(iter(pairs.values()))[0] | {"audit": dict(audit)}, fared, verdicts


def _results(config: EvalConfig, scores: Sequence[ScorerResults], drawn: Mapping[str, Drawings], device: str) -> dict[str, Any]:
    """Return what scores and pictures tell of the models."""
    features = drift.features(config.features, device=device)
    looks, right = {}, {}
    for who, drawings in drawn.items():
        results: list[dict[str, bool]] = []
        looks[who] = drift.appearance(_checked_images(drawings, results), features)
        right[who] = shares(results)
    facts = comparison(scores, looks, drawn[BASE].prompts, config.seed, config.visible_margin)
    return facts | {"checks": {who: found for who, found in right.items() if found}}


def _checked_images(drawings: Drawings, results: list[dict[str, bool]]) -> Iterator[list[Image.Image]]:
    """Yield the images of each prompt; of captions of the embedded world, the exact checks of each image are added to `results`."""
    for record in progress(drawings.records(), desc=f"look at {drawings.model}", unit="prompts", total=len(drawings.prompts)):
        images = [decode_image(candidate.image or b"", record.source) for candidate in record.candidates]
        if is_caption(record.prompt):
            results += [checks(record.prompt, image) for image in images]
        yield images


@dataclass(frozen=True)
class Pictures(Mapping[str, Image.Image]):
    """Image `number` of prompt `index` by every model, each read when it is looked up."""

    drawn: Mapping[str, Drawings]
    index: int
    number: int

    def __getitem__(self, name: str) -> Image.Image:
        record = read_table(self.drawn[name].images(self.index // self.drawn[name].size))[self.index % self.drawn[name].size]
        return decode_image(record.candidates[self.number].image or b"", record.source)

    def __iter__(self) -> Iterator[str]:
        return iter(self.drawn)

    def __len__(self) -> int:
        return len(self.drawn)


def _shown(scores: Sequence[ScorerResults], drawn: Mapping[str, Drawings]) -> list[Shown]:
    """Return every drawing with its scores, in the order of the prompts."""
    return [
        Shown(prompt, Pictures(drawn, i, k), {who: {one.name: float(one.values[who][i, k]) for one in scores} for who in drawn})
        for i, prompt in enumerate(drawn[BASE].prompts)
        for k in range(drawn[BASE].images_per_prompt)
    ]


def _write_grid(shown: Sequence[Shown], file: Path) -> None:
    """Write the first image of the first prompts, all models' side by side."""
    first = list({one.prompt: one for one in reversed(shown)}.values())[::-1][:SHOWN]
    tiles = [image for one in first for image in one.images.values()]
    width, height = tiles[0].size
    scale = min(1.0, SIDE / max(width, height))
    side = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = len(first[0].images) * max(1, COLUMNS // len(first[0].images))
    with atomic_file(file) as temporary:
        grid([tile if tile.size == side else tile.resize(side) for tile in tiles], columns).save(temporary, "PNG")
