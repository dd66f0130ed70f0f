"""Comparing finished runs with their base: draw, score, judge; in shards, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffalign.core.documents import read_mapping
from diffalign.core.errors import ConfigError, check_name
from diffalign.core.files import atomic_file, plain, write
from diffalign.core.keys import check_ranges, keys_for
from diffalign.core.processes import process_state
from diffalign.core.progress import progress
from diffalign.core.runs import Run
from diffalign.core.specs import bind
from diffalign.core.version import __version__
from diffalign.data.pictures import decode_image
from diffalign.data.table import read_table
from diffalign.data.world.checks import checks, is_caption, shares
from diffalign.data.world.tastes import TASTES
from diffalign.evaluate.contestants import BASE, Entry, entries, named
from diffalign.evaluate.heldout import accuracy_on, check_pairs
from diffalign.evaluate.options import EvalConfig
from diffalign.evaluate.pages.comparison import write_page
from diffalign.evaluate.pages.grid import Shown
from diffalign.evaluate.panel import Panel, panel
from diffalign.evaluate.statistics import Drift, Judged, alarmed, compared, rated, summarised
from diffalign.infer.sample import grid
from diffalign.infer.shards import SHARD, Drawings, draw_shards, score_drawings
from diffalign.rewards import drift

if TYPE_CHECKING:
    from accelerate import PartialState

RESULT, PAGE, GRID, IMAGES = "eval.json", "eval.html", "grid.png", "images"  # within the destination
HOW = keys_for(EvalConfig, "how")  # what decides how pictures are drawn
SHOWN, COLUMNS, SIDE = 32, 8, 256  # of grid.png: prompts, pictures in a row or a few more, and the longest side of each in pixels


def evaluate(config: EvalConfig, prompts: Sequence[str], *, command: str = "", user: Any = None) -> dict[str, Any] | None:
    """Return what `eval.json` says, and write it, `eval.html` and `grid.png`; None in all processes of a launch but the first.

    All models draw every prompt from the same noise; each prompt counts once. Personalised runs draw for `user`, as `for_user` takes it.
    Without prompts only the pairs of `dataset_name` are judged, and what is found is added to an earlier comparison of the same run.
    Raises ConfigError or CheckpointError for what cannot be meant, before any weight loads.
    """
    prompts, folder = tuple(dict.fromkeys(prompts)), destination(config)
    _check(config, prompts, user)
    torch.set_flush_denormal(True)
    state = process_state()
    device = config.device or str(state.device or "cpu")
    facts: dict[str, Any] = {"version": __version__, "command": command, "prompts": len(prompts)}
    shown: list[Shown] = []
    if prompts:
        judges, models = _panel(config, prompts), entries(config, user, device)
        drawn = _drawn(config, judges, models, prompts, state, device)
        if state.is_main_process:
            found = _by_scorer(judges, drawn)
            facts |= _told(config, models) | _judged(config, found, drawn, device)
            shown = _shown(found, drawn)
    if not state.is_main_process:
        return None
    if config.dataset_name is not None:
        pairs = (config.dataset_name, config.dataset_split_name, config.reader)
        facts["implicit_accuracy_heldout"] = round(accuracy_on(Run.open(config.output_dir), *pairs, device), 4)
    for stale in (found for name in (PAGE, RESULT) for found in folder.glob(f".{name}.*")):  # what a killed run had begun to write
        stale.unlink()
    if prompts:
        facts["grid"] = _grid(shown, folder)
        write_page(folder, facts, shown)
    known = plain(facts)
    write({folder / RESULT: json.dumps(known if prompts else _added(config, known), indent=2) + "\n"})
    return known


def _added(config: EvalConfig, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the accuracy on pairs within what an earlier comparison of the same run wrote, if there is one."""
    path, own = destination(config) / RESULT, Path(config.output_dir).resolve()
    earlier = read_mapping(path) if path.is_file() else {}
    same = [run for run in earlier.get("runs", [])[1:2] if config.destination is None or Path(run["path"]).resolve() == own]
    return earlier | {"implicit_accuracy_heldout": facts["implicit_accuracy_heldout"]} if same else facts


def _drawn(
    config: EvalConfig, judges: Panel, models: Sequence[Entry], prompts: tuple[str, ...], state: PartialState, device: str
) -> dict[str, Drawings]:
    """Return the images of every model, drawn and scored: this process does its share, and waits for the others."""
    drawn = {entry.name: _drawings(config, entry, prompts) for entry in models}
    if config.overwrite and state.is_main_process:
        shutil.rmtree(destination(config) / IMAGES, ignore_errors=True)
    state.wait_for_everyone()
    own = range(state.process_index, len(drawn[BASE]), state.num_processes)
    for entry in models:
        gc.collect()  # so that one model has left the memory before the next is loaded
        draw_shards(drawn[entry.name], own, entry.opened)
    for spec in judges.all:  # one is in memory at a time
        score_drawings(list(drawn.values()), own, spec, device)
    state.wait_for_everyone()
    return drawn


def destination(config: EvalConfig) -> Path:
    """Return the folder of the results."""
    return Path(config.output_dir) / "eval" if config.destination is None else Path(config.destination)


def _check(config: EvalConfig, prompts: Sequence[str], user: Any) -> None:
    """Raise the error that the settings deserve by themselves."""
    check_ranges(config)
    bind("feature", drift.FEATURES, config.features, device="cpu")
    if config.taste is not None:
        check_name("taste", config.taste, TASTES)
    run = Run.open(config.output_dir)
    if given := [option for option in keys_for(config, "drawn") if getattr(config, option) and not prompts]:
        raise ConfigError(f"`{given[0]}` is for pictures; give --prompts to draw, or leave it out")
    if config.dataset_name is not None:
        check_pairs(run, config.dataset_name, config.dataset_split_name, config.reader)
    if user is not None and not prompts:
        why = "draws no pictures without --prompts" if run.personal else "knows no users"
        raise ConfigError(f"a run of {run.method} {why}; leave out --user, --user_id and --pairs")


def _panel(config: EvalConfig, prompts: Sequence[str]) -> Panel:
    paths = [Path(path) for path in (config.output_dir, *(named(value)[1] for value in config.runs))]
    runs = [Run.open(path) for path in paths if Run.is_in(path)]
    return panel(prompts, runs, scorers=config.scorers, reward=config.reward, taste=config.taste, trust=config.trust_scorers)


def _drawings(config: EvalConfig, entry: Entry, prompts: tuple[str, ...]) -> Drawings:
    how: dict[str, Any] = {name: getattr(config, name) for name in HOW}
    folder = destination(config) / IMAGES / entry.name
    return Drawings(folder=folder, prompts=prompts, model=entry.name, facts=entry.facts, command="eval", overwrite=True, **how)


def _told(config: EvalConfig, models: Sequence[Entry]) -> dict[str, Any]:
    """Return what was compared, and how it was drawn."""
    runs = [{"name": entry.name, "path": entry.path, "method": entry.method} for entry in models]
    return {**{name: getattr(config, name) for name in HOW}, "runs": runs}


def _by_scorer(judges: Panel, drawn: Mapping[str, Drawings]) -> list[Judged]:
    """Return what each scorer says of all models. Raises ConfigError where two have one name."""
    found: list[Judged] = []
    for spec in judges.all:
        scored = {who: drawings.scored(spec) for who, drawings in drawn.items()}
        about = scored[BASE][0]
        if about["name"] in [one.about["name"] for one in found]:
            raise ConfigError(f"`scorers`: two of them give a score named `{about['name']}`; leave one out")
        values = {who: values for who, (_, values) in scored.items()}
        found.append(Judged(about, judges.held_out(spec, about["name"]), judges.reward(spec), values, judges.chose(spec)))
    return found


def _judged(config: EvalConfig, found: Sequence[Judged], drawn: Mapping[str, Drawings], device: str) -> dict[str, Any]:
    """Return what the scores and the pictures say."""
    seed, prompts = config.seed, drawn[BASE].prompts
    features = drift.features(config.features, device=device)
    looks = {who: _look(drawings, features) for who, drawings in drawn.items()}
    runs = [name for name in drawn if name != BASE]
    alarms = {run: alarmed(found, looks, BASE, run, prompts, seed) for run in runs}
    facts: dict[str, Any] = {
        "scorers": [one.facts() for one in found],
        "scores": {who: {one.name: summarised(one.values[who], prompts, seed) for one in found} for who in drawn},
        "comparisons": [compared(one, BASE, run, prompts, seed) for run in runs for one in found],
        "drift": {who: look.facts() for who, look in looks.items()},
        "checks": {who: dict(look.checks) for who, look in looks.items() if look.checks},
        "alarm": {run: reasons for run, (reasons, _) in alarms.items()},
        "mute": {run: why for run, (_, why) in alarms.items() if why is not None},
    }
    if len(drawn) > 2:
        facts["ratings"] = {one.name: rated(one, prompts, seed) for one in found}
    return facts


def _look(drawings: Drawings, features: drift.Features) -> Drift:
    """Return how one model's pictures look; exact checks are of the prompts that are captions of the embedded world."""
    spread, vivid, sharp, right = [], [], [], []
    for record in progress(drawings.records(), desc=f"look at {drawings.model}", unit="prompts", total=len(drawings.prompts)):
        images = [decode_image(candidate.image or b"", record.source) for candidate in record.candidates]
        spread.append(drift.diversity(images, features))
        vivid += [drift.saturation(image) for image in images]
        sharp += [drift.sharpness(image) for image in images]
        if is_caption(record.prompt):
            right += [checks(record.prompt, image) for image in images]
    return Drift(np.array(spread), float(np.mean(vivid)), float(np.mean(sharp)), shares(right))


@dataclass(frozen=True)
class Pictures(Mapping[str, Image.Image]):
    """Image `number` of prompt `index` by every model, each read when it is asked for."""

    drawn: Mapping[str, Drawings]
    index: int
    number: int

    def __getitem__(self, name: str) -> Image.Image:
        record = read_table(self.drawn[name].images(self.index // SHARD))[self.index % SHARD]
        return decode_image(record.candidates[self.number].image or b"", record.source)

    def __iter__(self) -> Iterator[str]:
        return iter(self.drawn)

    def __len__(self) -> int:
        return len(self.drawn)


def _shown(found: Sequence[Judged], drawn: Mapping[str, Drawings]) -> list[Shown]:
    """Return every drawing with its scores, in the order of the prompts."""
    return [
        Shown(prompt, Pictures(drawn, i, k), {who: {one.name: float(one.values[who][i, k]) for one in found} for who in drawn})
        for i, prompt in enumerate(drawn[BASE].prompts)
        for k in range(drawn[BASE].images_per_prompt)
    ]


def _grid(shown: Sequence[Shown], folder: Path) -> str:
    """Write the first image of the first prompts, all models' side by side, and return the file's name."""
    first = list({one.prompt: one for one in reversed(shown)}.values())[::-1][:SHOWN]
    tiles = [image for one in first for image in one.images.values()]
    width, height = tiles[0].size
    scale = min(1.0, SIDE / max(width, height))
    side = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = len(first[0].images) * max(1, COLUMNS // len(first[0].images))
    with atomic_file(folder / GRID) as temporary:
        grid([tile if tile.size == side else tile.resize(side) for tile in tiles], columns).save(temporary, "PNG")
    return GRID
