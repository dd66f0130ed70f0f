"""What tells one run from another: the facts that must be the same for a checkpoint to be gone on from."""

from __future__ import annotations

from typing import Any

from diffalign.core.parts import Parts
from diffalign.data.sampler import Sampler
from diffalign.data.view import View
from diffalign.methods.config import TrainConfig
from diffalign.models.backbones.folders import lasting

SAME = (
    "seed",
    "method",
    "transforms",
    "reference",
    "proportion_empty_prompts",
    "trajectory_cache",
    "ema_decay",
    "lora_alpha",
    "resolution",
)
SAME += ("max_sequence_length", "guidance_scale", "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "shift", "transport")
SAME += ("aspect_ratio_buckets", "quantization")


def identity(config: TrainConfig, view: View, parts: Parts, sampler: Sampler) -> dict[str, Any]:
    """Return what a run is, as JSON: its model, data, order, optimiser and the parts of its method."""
    ordered = {"curriculum": config.curriculum, "samples": config.max_train_steps * sampler.effective} if config.curriculum else {}
    return {
        "bucket_batch": config.train_batch_size if config.buckets else None,  # which the order of the records then depends on
        "model": lasting(config.pretrained_model_name_or_path),
        "table": view.table.fingerprint,
        "records": len(parts.pairs),
        "batch": sampler.effective,
        "optimizer": config.optimizer_name,
        **{name: getattr(config, name) for name in SAME},
        **({"scores": config.scores} if config.scores else {}),
        **ordered,
        **parts.facts,
        **{kind: config.part(kind) for kind in ("objective", "trajectory", "error")},
        **({} if config.users is None else _users(config, parts)),
    }


def _users(config: TrainConfig, parts: Parts) -> dict[str, Any]:
    encoder: Any = parts.backbone.network.user_encoder
    return {"user_encoder": config.users, "user_dropout": config.user_dropout, "user_source": encoder.sizes.source}
