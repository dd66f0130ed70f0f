"""From a recipe to the parts that train a reward model, and what is measured of it before run.json is written."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.core.errors import ConfigError, TableError, did_you_mean
from diffalign.core.files import atomic_file
from diffalign.core.processes import process_state
from diffalign.core.runs import Run
from diffalign.data.entries import Entries
from diffalign.data.view import View
from diffalign.methods.builders.common import cache_root, order
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models.reference import NoReference
from diffalign.rewards.heads.calibration import calibration, in_words, reliability
from diffalign.rewards.heads.embeds import load_embeds
from diffalign.rewards.heads.model import RewardModel
from diffalign.rewards.heads.networks import HeadSizes, JointHead, PalHead, RewardHead
from diffalign.rewards.heads.pairs import RewardBatch, RewardLikelihood, RewardPairs, StoredEmbeds, sources_of, split
from diffalign.rewards.heads.settings import (
    MetaSettings,
    MoreSettings,
    OrchestratorSettings,
    PalSettings,
    RegressionSettings,
    Settings,
    settings_of,
)
from diffalign.rewards.heads.store import FILE, load_head
from diffalign.rewards.heads.table import make, name_of

logger = logging.getLogger(__name__)
MOST = 10_000  # records that mean and deviation of embeddings are measured on
PICTURE = "reliability.png"


def parts(config: TrainConfig, recipe: Recipe, view: View, device: torch.device) -> Parts:
    """Return head, embeddings and data; the head's weights come from the seed. Raises TableError for data that cannot be split."""
    _, settings = settings_of(config.reward_head, config.method)
    beta = recipe.beta or 1.0
    other = _held_out(config, recipe)
    if other:
        _check_apart(view, other)
    kept, out, users = divided(config, view)
    embeds = load_embeds(config.pretrained_model_name_or_path, config.revision, device)
    index = {name: place for place, name in enumerate(users)}
    scores = settings.columns if isinstance(settings, OrchestratorSettings) else ()  # which it reads in place of images
    with process_state().main_process_first():  # it embeds the images, the others read what it has stored
        stored = StoredEmbeds(view, embeds, cache_root(config, view), scores)
        apart = StoredEmbeds(other, embeds, cache_root(config, other), scores) if other else stored
    sources = _sources(view, settings)
    data = RewardPairs(view, kept, stored, index, sources)
    held_out = RewardPairs(other or view, other.entries if other else out, apart, index)
    torch.manual_seed(config.seed)
    head = make(settings, HeadSizes(len(scores) or embeds.image_width, embeds.prompt_width, users))
    some = RewardPairs(view, kept[:: max(1, len(kept) // MOST)], stored, index).whole()
    head.standardise(some.images.flatten(0, 1), some.prompts)
    head.measure_scores(some.labels.columns)
    if isinstance(settings, RegressionSettings) and settings.start is not None:
        start_from(head, settings.start, embeds.fingerprint)
    facts = {"embeds": embeds.fingerprint, "reward_head": config.reward_head, "held_out_share": None if other else config.held_out_share}
    facts |= {name: getattr(config, name) for name in ("held_out_dataset_name", "held_out_split_name")} | {"users": len(users)}
    model = RewardModel(head.to(device), embeds.fingerprint, config.pretrained_model_name_or_path, beta)
    measure = functools.partial(measured, head, held_out, beta, config.seed)
    groups = head.groups(config.learning_rate)
    table, index = view.table.fingerprint, order(config, view)
    more: dict[str, Any] = {"facts": facts, "groups": groups, "measure": measure}
    return Parts("reward", recipe, model, RewardLikelihood(), NoReference(), data, table, index, **more)


def check(config: TrainConfig, view: View) -> None:
    """Raise TableError or CheckpointError where the head needs sources or a run that are not there, before anything is embedded."""
    _, settings = settings_of(config.reward_head, config.method)
    _sources(view, settings)
    if isinstance(settings, RegressionSettings) and settings.start is not None:
        Run.open(settings.start, expects="reward")


def _sources(view: View, settings: Settings) -> dict[int, int] | None:
    """Return of which source every table row is, for heads that tell these apart; for `meta` 1 is the shifted one, 0 any other."""
    if not isinstance(settings, MoreSettings | MetaSettings):
        return None
    sources, names = sources_of(view, settings.by)
    if isinstance(settings, MoreSettings):
        return sources
    if settings.shifted not in names:
        raise TableError(f"{view.table.path}: no record is of the source `{settings.shifted}`.{did_you_mean(settings.shifted, names)}")
    shifted = {row: int(names[source] == settings.shifted) for row, source in sources.items()}
    if not any(shifted[row] for row in view.entries.rows.tolist()):
        raise TableError(
            f"{view.table.path}: the transforms leave no pair of the source `{settings.shifted}`, which the head `meta` tells apart; pairs "
            "without a label are left out, so give them any, such as 0.5: it is not read"
        )
    return shifted


def _held_out(config: TrainConfig, recipe: Recipe) -> View | None:
    """Return the records of a dataset of their own to measure on, if there is one."""
    if config.held_out_dataset_name is None:
        return None
    folder = str(Path(config.output_dir) / "held_out")
    dataset = {"dataset_name": config.held_out_dataset_name, "dataset_split_name": config.held_out_split_name, "reader": None}
    other = replace(config, **dataset, output_dir=folder, max_train_samples=None)
    return open_dataset(other, recipe, reuse=int(os.environ.get("RANK", "0")) > 0)  # that the first process has imported


def _check_apart(view: View, other: View) -> None:
    """Raise TableError where the held-out pairs are those of the training, and say how many of their prompts are."""
    if other.table.fingerprint == view.table.fingerprint:
        raise TableError(
            f"{other.table.path}: the held-out pairs are those that are trained on; name others, or leave `held_out_dataset_name` out "
            "to hold out a share of the prompts"
        )
    prompts = set(other.entries.prompts)
    if known := prompts.intersection(view.entries.prompts):
        logger.warning(
            "%d of %d held-out prompts are trained on too: what is measured is not of new prompts alone", len(known), len(prompts)
        )


def divided(config: TrainConfig, view: View) -> tuple[Entries, Entries, tuple[str, ...]]:
    """Return the records to train on, those held out of them, and the users of PAL. Raises TableError for data that cannot be split."""
    kept, out = (view.entries, view.entries.take([])) if config.held_out_dataset_name else _split(config, view)
    _, settings = settings_of(config.reward_head, config.method)
    if not isinstance(settings, PalSettings):
        return kept, out, ()
    users = _users(view, kept)
    return kept.take(np.flatnonzero(kept.users[1] >= 0)), out, users


def _split(config: TrainConfig, view: View) -> tuple[Entries, Entries]:
    kept, out = split(view.entries, config.held_out_share, config.seed)
    if not (kept.prob != 0.5).any():
        raise TableError(
            f"{view.table.path}: {len(view.entries.prompts)} prompts, and none with a preference is left to train on when "
            f"{config.held_out_share:g} of them are held out; name other pairs with `held_out_dataset_name`"
        )
    return kept, out


def _users(view: View, entries: Entries) -> tuple[str, ...]:
    """Return the users of the training, sorted, and say how many records name none. Raises TableError where none does."""
    users, owner = entries.users
    if not users:
        raise TableError(f"{view.table.path}: no record names its user, and PAL learns of users; records name them in the column user_id")
    if nameless := int((owner < 0).sum()):
        logger.warning("%d of %d records name no user, and are left out", nameless, len(entries))
    return tuple(users)


@torch.no_grad()
def measured(head: RewardHead, held_out: RewardPairs, beta: float, seed: int, folder: Path) -> dict[str, Any]:
    """Return {"held_out": what the head says of pairs not trained on}, and write its reliability as a picture into `folder`."""
    batch = held_out.whole().to(head.image_mean.device)
    margin, prob, places = judged_pairs(head.eval(), batch, beta)
    prompts = [held_out.entries[place].prompt for place in places.tolist()]
    facts = calibration(margin.double().cpu().numpy(), prob.double().cpu().numpy(), prompts, seed)
    if isinstance(head, PalHead):
        facts["unknown_users"] = int((batch.users < 0).sum())
    logger.info("%s", in_words(facts))
    with atomic_file(folder / PICTURE) as temporary:
        reliability(facts["bins"]).save(temporary, "PNG")
    return {"held_out": facts}


def judged_pairs(head: RewardHead, batch: RewardBatch, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (P,) of preferring the first, labels (P,) and the records (P,) they are of: of lists all pairs, of one the like."""
    count, records = batch.images.shape[1], torch.arange(len(batch.prob))
    if count == 1:
        return beta * head(batch.images, batch.prompts, batch.users)[:, 0], batch.prob, records
    first, second = torch.triu_indices(count, count, 1)
    logits = beta * head.pair_logits(batch.images, batch.prompts, batch.users)[:, first, second]
    gains = batch.labels.columns.get("gains")
    if count == 2 or gains is None:
        return logits[:, 0], batch.prob, records
    prob = 0.5 + 0.5 * (gains[:, first] - gains[:, second]).sign()
    return logits.flatten(), prob.flatten(), records.repeat_interleave(len(first))


def start_from(head: RewardHead, folder: str, embeds: str) -> None:
    """Take over the reward of a run of reward_bt. Raises ConfigError for a run of another head, size or embeddings."""
    other, source, _ = load_head(Path(folder) / FILE)
    if not isinstance(other, JointHead) or not isinstance(head, JointHead) or name_of(other.settings) != "bt":
        raise ConfigError(f"reward_head: `start` is {folder}, a run of the head {name_of(other.settings)}; expected one of reward_bt")
    ours, theirs = head.layers.state_dict(), other.layers.state_dict()
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (ours, theirs)]
    if source != embeds or shapes[0] != shapes[1]:
        what = "other embeddings" if source != embeds else "another size of head"
        raise ConfigError(f"reward_head: `start` is {folder}, a run on {what}; give the model, `hidden` and `prompts` of that run")
    head.load_state_dict(other.state_dict(), strict=False)
