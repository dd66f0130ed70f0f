"""What a finished run leaves: its weights, and the facts that loading, judging and exporting it need."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from diffalign.core.parts import Trained
from diffalign.core.runs import RUN, scorers_of
from diffalign.data.table import is_table, read_table
from diffalign.methods import METHODS
from diffalign.methods.config import TrainConfig
from diffalign.models import adapters
from diffalign.models.backbones.folders import lasting
from diffalign.models.backbones.table import load_denoiser
from diffalign.models.text.network import LanguageModel
from diffalign.models.users import branch
from diffalign.models.users.store import BRANCH, ENCODER, save_encoder
from diffalign.rewards.heads.model import RewardModel
from diffalign.rewards.heads.store import FILE, save_head

logger = logging.getLogger(__name__)


def save_result(backbone: Trained, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Write the trained weights to the run's folder and then run.json, whose presence says that the run is finished."""
    folder = Path(config.output_dir)
    _save_weights(backbone, config, folder)
    known = {
        "base": lasting(config.pretrained_model_name_or_path),
        "revision": config.revision,
        "variant": config.variant,
        "vae": config.pretrained_vae_model_name_or_path and lasting(config.pretrained_vae_model_name_or_path),
        "kind": _kind(backbone),
        "component": backbone.component,
        "max_sequence_length": config.max_sequence_length,
        "method": config.method,
        "inference": "user" if config.tuning == "user" else METHODS[config.method].inference,
        "train_method": config.tuning,
        "mixed_precision": config.mixed_precision,
        "scorers": scorers_of(read_table(config.dataset_name).manifest if is_table(config.dataset_name or "") else {}),
    }
    temporary = folder / f"{RUN}.tmp"
    temporary.write_text(json.dumps(known | facts, indent=2) + "\n")
    temporary.replace(folder / RUN)


def _kind(backbone: Trained) -> str:
    if isinstance(backbone, RewardModel):
        return "reward"
    return "text" if isinstance(backbone, LanguageModel) else "image"


def _save_weights(backbone: Any, config: TrainConfig, folder: Path) -> None:
    if isinstance(backbone, RewardModel):
        save_head(backbone.network, folder / FILE, embeds=backbone.embeds, beta=backbone.beta)
        return
    if isinstance(backbone, LanguageModel):
        _save_language_model(backbone, config, folder)
        return
    pipe, component = backbone.pipeline(whole=False), backbone.component
    if config.tuning == "user":
        denoiser: Any = backbone.denoiser
        branch.save(denoiser, folder / BRANCH, {"encoder": denoiser.user_encoder.fingerprint()})
        save_encoder(denoiser.user_encoder, folder / ENCODER)
        return
    if config.tuning != "full":
        adapters.save_lora(pipe, folder, component)
        return
    adapters.save_full(backbone.denoiser, folder / component)
    if METHODS[config.method].inference == "negative_guidance":  # it takes an adapter: one network serves both branches
        base = load_denoiser(config.pretrained_model_name_or_path, revision=config.revision, variant=config.variant)
        kept = adapters.save_difference(pipe, base, backbone.denoiser, folder, component=component)
        logger.info("%s: an adapter with %.1f %% of the squared change, for guidance", adapters.WEIGHTS, 100 * kept)


def _save_language_model(model: LanguageModel, config: TrainConfig, folder: Path) -> None:
    """Write the adapter as peft's files, or the whole model with its tokenizer."""
    if config.tuning != "full":
        adapters.save_peft(model.network, folder, lasting(model.name))
        return
    adapters.save_full(model.network, folder / model.component)
    model.tokenizer.save_pretrained(folder / model.component)
