"""What a finished run leaves: its weights, and the facts that loading, judging and exporting it need."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diffalign.core.errors import TrainingError
from diffalign.core.files import free, write
from diffalign.core.runs import CONFIG, RUN, scorers_of
from diffalign.data.table import is_table, read_table
from diffalign.infer.kinds.table import KINDS
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import save_yaml
from diffalign.methods.parts import Parts
from diffalign.models.adapter_files import adapter_facts
from diffalign.models.backbones.folders import lasting


def save_result(parts: Parts, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Write the trained weights to the run's folder and then run.json, whose presence says that the run is finished."""
    folder, vae = Path(config.output_dir), config.pretrained_vae_model_name_or_path
    KINDS[parts.kind].save(parts, config, folder)
    run = {
        "base": lasting(config.pretrained_model_name_or_path),
        "revision": config.revision,
        "variant": config.variant,
        "vae": vae and lasting(vae),
        **({"denoiser": lasting(config.denoiser)} if config.denoiser else {}),
        "kind": parts.kind,
        "component": parts.backbone.component,
        "max_sequence_length": config.max_sequence_length,
        "method": config.method,
        "inference": parts.recipe.inference,
        "train_method": parts.recipe.tuning,
        "mixed_precision": config.mixed_precision,
        "scorers": scorers_of(read_table(config.dataset_name).manifest if is_table(config.dataset_name or "") else {}),
    }
    run |= {"data": dict(parts.usage)} if parts.usage else {}
    write({folder / RUN: json.dumps(run | adapter_facts(parts.backbone.network) | facts, indent=2) + "\n"})


@contextlib.contextmanager
def refused_by_disk(folder: Path) -> Iterator[None]:
    """Raise TrainingError, which says how the training is not lost, where the block cannot write a result into `folder`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has one of its own for a full disk
        raise TrainingError(
            f"{folder}: the training is done, and its result could not be written ({error}; {free(folder)}); make room, and run the same "
            "command with --resume_from_checkpoint latest"
        ) from error


def save_run(parts: Parts, config: TrainConfig, temporary: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Write the network as it stands as a run of its own into `temporary`, which will be `folder`: best/, a checkpoint."""
    save_yaml(replace(config, output_dir=str(folder)), temporary / CONFIG)
    save_result(parts, replace(config, output_dir=str(temporary)), facts)
