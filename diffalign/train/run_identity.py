"""What tells one run from another: the facts that must be the same for a checkpoint to be gone on from."""

from __future__ import annotations

from typing import Any

from diffalign.core.keys import facts_of
from diffalign.data.sampler import Sampler
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import part
from diffalign.models.backbones.folders import lasting


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
