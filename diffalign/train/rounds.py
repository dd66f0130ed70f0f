"""Training in rounds: the model draws, scorers rank, the model learns from that, and draws anew.

Each round is an ordinary run in `round-N`, its table in `round-N/data`. It goes on from the result of the round before: the same adapter
(or denoiser) is trained further, and its reference is a copy of it as the round began (`start_from`). So the last round's weights are the
whole change from the first model, in the rank and size of one round, and `output_dir` takes them over as its own. Concatenating the ranks
of a fresh adapter a round would be exact, too, but grow with every round, and the magnitudes of DoRA cannot be concatenated.

With `round_momentum` a round begins beyond that result (`round-N/start`), and is compared with where it began; what it learned besides is
in its own weights.

With `eval_every` each round is compared with itself as it began. A round that over-optimises, and is stopped, is the last one.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffalign.core.claim import claim, settle
from diffalign.core.errors import ConfigError, TableError, did_you_mean
from diffalign.core.files import atomic_file, atomic_folder, write
from diffalign.core.keys import facts_of, require
from diffalign.core.locks import locked
from diffalign.core.processes import process_state
from diffalign.core.runs import CONFIG, RUN, Run
from diffalign.core.specs import single
from diffalign.data.prompts import prompts_to_draw, subset
from diffalign.data.table import is_table, read_table
from diffalign.data.view import without_content
from diffalign.infer.generate_pairs import WHAT, WRITES, generate
from diffalign.infer.generate_pairs import check as check_drawing
from diffalign.infer.kinds import image
from diffalign.infer.options import GenerateConfig
from diffalign.methods.checks import check
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping, load_yaml, save_yaml, typed
from diffalign.methods.recipe import Recipe
from diffalign.train import align
from diffalign.train.extrapolation import write_beyond
from diffalign.train.overoptimisation import BEST, EVALUATIONS, Watch
from diffalign.train.results import RESULTS, replaced_by
from diffalign.train.trainer import LOG

logger = logging.getLogger(__name__)
SPACING = 1_000_003  # between the seeds of two rounds
MODEL = tuple(name for name, facts in facts_of(TrainConfig).items() if facts.changes == "model")
FROM_TRAINING = (*MODEL, "output_dir", "overwrite", *WRITES)  # what `generate` takes no flag for: the training says it, or trains images


@dataclass(frozen=True, slots=True)
class Beyond:
    """Where a round begins with `round_momentum`: beyond the run `last`, as seen from the run `before` it, or from the model."""

    folder: Path
    last: Path
    before: Path | None
    momentum: float


@dataclass(frozen=True, slots=True)
class Round:
    """A round: what it draws, to which prompts, and how it trains on that. A dataset that is given is not drawn."""

    number: int
    drawing: GenerateConfig | None
    prompts: tuple[str, ...]
    training: TrainConfig
    start: Beyond | None = None  # None where it begins with the result of the last round itself, or with the model


def train(config: TrainConfig) -> Path:
    """Run all rounds of a config, or with `resume_from_checkpoint: latest` those that are left; return the output folder.

    Finished rounds stay as they are, a half-drawn one goes on from its parts, a half-trained one from its checkpoint. More `rounds` than
    a finished run had go on from its last one. Raises ConfigError for settings that cannot be meant, or are not those of the earlier run.
    """
    folder, state = Path(config.output_dir), process_state()
    if state.is_main_process:
        settle(folder)  # what a killed run may have left
    state.wait_for_everyone()
    check(config)
    plan = planned(config)
    patterns = replaced_by(config) if state.is_main_process else ()
    state.wait_for_everyone()  # so that no process looks for an earlier run that has been moved
    with locked(folder) if state.is_main_process else nullcontext(), claim(folder, patterns):
        _play_all(config, plan, state)
    state.wait_for_everyone()
    state.destroy_process_group()
    return folder


def _play_all(config: TrainConfig, plan: Sequence[Round], state: Any) -> None:
    """Play the rounds that are left, and gather their result."""
    folder, played = Path(config.output_dir), list[Path]()
    state.wait_for_everyone()
    _refuse_others(config)
    state.wait_for_everyone()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_yaml(config, folder / CONFIG)
    for part in plan:
        _play(part, len(plan), state)
        played.append(Path(part.training.output_dir))
        if why := _facts(played[-1]).get("stopped"):
            logger.warning("round %d of %d is the last one, for it was stopped at %s", part.number, len(plan), why)
            break
    if state.is_main_process:
        _gather(folder, played)


def planned(config: TrainConfig) -> list[Round]:
    """Return the rounds of a config, nothing loaded. Raises ConfigError for what cannot be meant in `generate`."""
    drawing = _drawing(config)
    require("generate.max_prompts", drawing.max_prompts, lambda v: v >= 1, "at least one prompt")
    prompts = prompts_to_draw(drawing.prompts, drawing.dataset_name, drawing.dataset_split_name, column=drawing.caption_column)
    check_drawing(drawing, prompts)
    Watch.of(config)
    rounds: list[Round] = []
    for number in range(1, config.rounds + 1):
        folder, before = Path(config.output_dir) / f"round-{number}", rounds[-1].training.output_dir if rounds else config.start_from
        start = _beyond(config, number) if rounds and config.round_momentum else None
        before = before if start is None else str(start.folder)
        has_data = bool(config.dataset_name) and number == 1
        drawn = replace(drawing, output_dir=str(folder / "data"), seed=drawing.seed + SPACING * (number - 1))
        if before is not None:  # a run knows its own
            drawn = replace(drawn, **dict.fromkeys(WHAT) | {"base_lora": [], "pretrained_model_name_or_path": before})
        elif config.start_from_lora is not None:
            drawn = replace(drawn, base_lora=[*drawn.base_lora, config.start_from_lora])
        plain = {} if number == 1 else {"reader": None, "dataset_split_name": None}
        training = replace(
            config,
            rounds=1,
            round_momentum=0.0,
            generate={},
            dataset_name=config.dataset_name if has_data else drawn.output_dir,
            **_going_on(config, before),
            output_dir=str(folder),
            overwrite_output_dir=False,
            seed=config.seed + SPACING * (number - 1),
            **plain,
        )
        part = tuple(subset(prompts, drawing.max_prompts, drawing.seed, number - 1))
        rounds.append(Round(number, None if has_data else drawn, part, training, start))
    return rounds


def _beyond(config: TrainConfig, number: int) -> Beyond:
    """Return where a later round begins with `round_momentum`."""
    results = [config.start_from, *(str(Path(config.output_dir) / f"round-{n}") for n in range(1, number))]
    before, last = results[-2:]
    return Beyond(Path(config.output_dir) / f"round-{number}" / "start", Path(str(last)), before and Path(before), config.round_momentum)


def _going_on(config: TrainConfig, before: str | None) -> dict[str, str | None]:
    """Return what a round goes on from: the run `before`, whose adapter is shaped by a file where the first round began with one."""
    if config.start_from_lora is None:
        return {"start_from": before}
    return {"start_from_lora": before or config.start_from_lora}


def _drawing(config: TrainConfig) -> GenerateConfig:
    """Return what `generate` says, with what the training says of the model. Raises ConfigError for unknown names, types and its own."""
    names = [field.name for field in dataclasses.fields(GenerateConfig)]
    flags = [name for name in names if name not in FROM_TRAINING]
    for name in config.generate:
        if name not in flags:
            raise ConfigError(f"`generate` takes no `{name}`.{did_you_mean(name, flags)}")
    model = {name: getattr(config, name) for name in MODEL if name in names}
    values = model | {"seed": config.seed, "output_dir": config.output_dir} | config.generate
    if isinstance(values.get("prompts"), str):
        values["prompts"] = [values["prompts"]]
    return typed(GenerateConfig, values, "`generate`")


def _refuse_others(config: TrainConfig) -> None:
    """Raise ConfigError where the folder has rounds of other settings, or more of them.

    What was not used yet may change: how to train, before the first checkpoint, and, before the first table, what to draw (of images that
    wait for their scores, `generate` asks whether they were drawn alike).
    """
    folder = Path(config.output_dir)
    rounds = [round_ for round_ in folder.glob("round-*") if is_table(round_ / "data") or _trained(round_)]
    if not rounds:
        return
    if _trained(folder / f"round-{config.rounds + 1}"):
        raise ConfigError(f"`rounds` is {config.rounds}, and {folder} has round-{config.rounds + 1} already; choose another output_dir")
    earlier = from_mapping(load_yaml(folder / CONFIG), str(folder / CONFIG))
    matter = ("model", "data", "training") if any(map(_trained, rounds)) else ("model", "data")
    for name, facts in facts_of(config).items():
        before, now = getattr(earlier, name), getattr(config, name)
        if facts.changes in matter and before != now:
            raise ConfigError(
                f"{folder}: its rounds were made with `{name}` {before!r}, and this run has {now!r}; choose another output_dir"
            )


def _trained(round_: Path) -> bool:
    """Return whether a round's training has left anything that another would go on from."""
    return Run.is_in(round_) or any(round_.glob("checkpoint-*"))


def _play(part: Round, total: int, state: Any) -> None:
    """Draw what a round lacks, and train it to its end, unless it is finished."""
    folder, data = Path(part.training.output_dir), part.drawing and Path(part.drawing.output_dir)
    if Run.is_in(folder):
        logger.info("round %d of %d is finished", part.number, total)
        return
    logger.info("round %d of %d", part.number, total)
    if (start := part.start) is not None and state.is_main_process and not Run.is_in(start.folder):
        write_beyond(start.folder, start.last, start.before, start.momentum)
    state.wait_for_everyone()
    if part.drawing is not None and not is_table(part.drawing.output_dir):
        generate(part.drawing, part.prompts)
    if state.is_main_process and data is not None:
        shutil.rmtree(data.with_name(f"{data.name}.parts"), ignore_errors=True)  # of a run that was killed between table and parts
    state.wait_for_everyone()
    if data is not None:
        _refuse_ties(data, part.number)
    gc.collect()  # the pipeline that drew
    align.run(part.training)
    gc.collect()


def _refuse_ties(data: Path, number: int) -> None:
    """Raise TableError where the images of every prompt share a rank; training could not name a way on."""
    if all(len({candidate.rank for candidate in record.candidates}) == 1 for record in without_content(read_table(data))):
        cure = f"end with the round before by `rounds: {number - 1}`" if number > 1 else "remove the folder and give other scorers"
        raise TableError(f"{data}: for every prompt, the scorers find all its images equally good; {cure}")


def _gather(folder: Path, rounds: list[Path]) -> None:
    """Make `folder` a finished run: the weights of the last round, the logs, the pictures and the steps of all, and last run.json.

    `best/` is that of the last round that has one; its step is counted from the first round's start.
    """
    for name in RESULTS:
        _take(rounds[-1] / name, folder / name)
    facts = [_facts(round_) for round_ in rounds]
    starts = list(accumulate((facts_of_round["steps"] for facts_of_round in facts), initial=0))
    for round_, done in zip(rounds, starts, strict=False):
        _pictures(round_ / "validation", folder / "validation", done)
    for name in (LOG, EVALUATIONS):
        if (rounds[-1] / name).is_file():
            write({folder / name: _joined([round_ / name for round_ in rounds], starts)})
    summaries = [{name: facts_of_round.get(name) for name in ("seed", "table", "records", "steps", "skipped")} for facts_of_round in facts]
    whole = {name: value for name, value in facts[-1].items() if name != "start"}
    whole |= {
        "seed": facts[0]["seed"],
        "steps": starts[-1],
        "skipped": sum(facts_of_round["skipped"] for facts_of_round in facts),
        "rounds": summaries,
    }
    if whole.get("stopped"):
        whole["stopped"] = f"round {len(rounds)}, {whole['stopped']}"
    kept = [
        (round_, done, facts_of_round["best"])
        for round_, done, facts_of_round in zip(rounds, starts, facts, strict=False)
        if facts_of_round.get("best")
    ]
    for round_, done, best in kept[-1:]:
        _take(round_ / BEST, folder / BEST)
        whole["best"] = best | {"step": done + best["step"]}
    write({folder / RUN: json.dumps(whole, indent=2) + "\n"})


def _facts(run: Path) -> Mapping[str, Any]:
    return Run.open(run, expects="image").facts


def _take(source: Path, destination: Path) -> None:
    """Copy a file or a folder, whole or not at all, if it is there."""
    if source.is_dir():
        with atomic_folder(destination) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    elif source.is_file():
        with atomic_file(destination) as temporary:
            shutil.copyfile(source, temporary)


def _joined(logs: list[Path], starts: list[int]) -> str:
    """Return the lines of all rounds, each with its round and its step since the first round's start."""
    lines = []
    for number, (log, done) in enumerate(zip(logs, starts, strict=False), 1):
        for logged in map(json.loads, log.read_text().splitlines()):
            lines.append(json.dumps(logged | {"step": done + logged["step"], "round": number}) + "\n")
    return "".join(lines)


def _pictures(source: Path, destination: Path, done: int) -> None:
    """Copy what a round drew to look at, under the steps of all rounds so far; the end of one is the start of the next."""
    for picture in sorted(source.glob("step-*")):
        destination.mkdir(exist_ok=True)
        step = done + int(picture.stem.removeprefix("step-"))
        shutil.copyfile(picture, destination / f"step-{step:06d}{picture.suffix}")


def outlook(config: TrainConfig, recipe: Recipe) -> str:
    """Return what each round would draw and train, and about how much memory the last training takes. Loads and writes nothing."""
    plan = planned(config)
    lines = [f"round {part.number} of {len(plan)}  seed {part.training.seed}: {_what(part)}" for part in plan]
    return "\n".join([*lines, "", image.outlook(plan[-1].training, recipe, _candidates(plan[-1], recipe))])


def _what(part: Round) -> str:
    drawn, then = part.drawing, f"{part.training.max_train_steps} steps"
    if drawn is None:
        return f"{part.training.dataset_name}, {then}"
    judges = ", ".join(single("scorer", spec)[0] for spec in drawn.scorers)
    by = f"by {drawn.pretrained_model_name_or_path}, ranked by {judges}"
    return f"{len(part.prompts)} prompts x {drawn.images_per_prompt} images {by}; {then}"


def _candidates(part: Round, recipe: Recipe) -> int:
    """Return how many images of a prompt are trained on together: all where the transforms make lists of them, else two."""
    specs = dict(single("transform", spec) for spec in recipe.transforms)
    images = 2 if part.drawing is None else part.drawing.images_per_prompt
    return specs["list_of"].get("candidates", images) if "list_of" in specs else 2
