"""What tells one run from another: the facts that must be the same for a checkpoint to be gone on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.core.errors import CheckpointError
from diffalign.core.keys import default_of, facts_of
from diffalign.data.sampler import Sampler
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import part, tuning_of
from diffalign.models.backbones.folders import lasting

SHAPES = ("train_method", "rank", "lora_layers", "reward_head")  # keys that say how many weights are trained, and which


def identity(config: TrainConfig, parts: Parts, sampler: Sampler) -> dict[str, Any]:
    """Return what a run is, as JSON: its model, data, order, optimiser and the parts of its method."""
    facts = {
        "bucket_batch": config.train_batch_size if config.aspect_ratio_buckets else None,  # which the order of the records then depends on
        "model": lasting(config.pretrained_model_name_or_path),
        "table": parts.table,
        "records": len(parts.pairs),
        "batch": sampler.effective,
        "optimizer": config.optimizer_name,
    }
    facts |= {name: getattr(config, name) for name, key in facts_of(config).items() if key.resume}
    if config.scores:
        facts["scores"] = config.scores
    if config.curriculum:
        facts |= {"curriculum": config.curriculum, "samples": config.max_train_steps * sampler.effective}
    facts |= parts.facts
    facts |= {kind: part(config, kind) for kind in ("objective", "trajectory", "error")}
    if parts.recipe.users is not None:
        encoder: Any = parts.backbone.network.user_encoder
        facts |= {"user_encoder": parts.recipe.users.spec, "user_dropout": config.user_dropout, "user_source": encoder.sizes.source}
    return facts


def check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any], config: TrainConfig, processes: int) -> None:
    """Raise CheckpointError where a checkpoint's facts are not those of this run; a key that it does not know had its default."""
    defaults = {item.name: default_of(item) for item in dataclasses.fields(config)}
    for name, value in here.items():
        before = there.get(name, defaults.get(name))
        if before == value:
            continue
        if name == "batch":
            once = config.train_batch_size * processes
            cure = f"{value} = {config.train_batch_size} x {config.gradient_accumulation_steps} accumulated x {processes} processes; "
            cure += (
                f"keep it with --gradient_accumulation_steps {before // once}" if before % once == 0 else "keep it with another batch size"
            )
            raise CheckpointError(f"{folder}: made with {before} records a step, this run has {cure}")
        raise CheckpointError(f"{folder}: made with {name} {before}, this run has {value}; choose another output_dir")


def changes(file: Path, config: TrainConfig) -> Iterator[str]:
    """Yield what a run that goes on does otherwise than its config.yaml says: "learning_rate: 0.001 -> 1e-05".

    Raises CheckpointError for a key that the weights of the checkpoint depend on.
    """
    if not file.is_file():
        return
    earlier = from_mapping(load_yaml(file), str(file))
    earlier, config = (replace(one, train_method=tuning_of(one)) for one in (earlier, config))
    for name, facts in facts_of(config).items():
        before, now = getattr(earlier, name), getattr(config, name)
        if before == now or name == "pretrained_model_name_or_path":  # one folder has several names; its facts were compared
            continue
        if name in SHAPES or (facts.changes == "model" and not facts.resume):
            raise CheckpointError(f"{file}: `{name}` was {before}, and this run has {now}; choose another output_dir")
        if facts.changes == "training":
            yield f"{name}: {before} -> {now}"
