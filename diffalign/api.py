"""Training in one call. Everything cheap is checked before torch is imported, and everything else before weights load."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.backbones.folders import check_folder, resolve
from diffalign.config import TrainConfig, from_mapping
from diffalign.data.records import Record
from diffalign.data.table import is_table, write_table
from diffalign.dataset import open_dataset
from diffalign.errors import ConfigError

logger = logging.getLogger(__name__)


def align(
    model: str, data: str | Path | Iterable[Record], *, method: str = "diffusion_dpo", output_dir: str | Path, **options: Any
) -> Path:
    """Fine-tune `model` on preferences and return the folder with the result, for `diffalign.load`.

    `data` is a table, dataset file, folder or hub id, or records. `options` are the keys of `TrainConfig`.
    Raises ConfigError, RecordError, TableError or CheckpointError before any weight loads where the input cannot be meant.
    """
    if not isinstance(data, str | Path):
        path = Path(output_dir) / "data"
        data = write_table(path, data, overwrite=is_table(path)).path
    given: Mapping[str, Any] = {
        "pretrained_model_name_or_path": model,
        "dataset_name": str(data),
        "method": method,
        "output_dir": str(output_dir),
        **options,
    }
    return train(from_mapping(given, "diffalign.align"))


def train(config: TrainConfig) -> Path:
    """Run a training config from its checks to its last step; return the output folder."""
    config = config.check()
    check_folder(resolve(config.pretrained_model_name_or_path))
    _check_output(config)
    view = open_dataset(config)
    from diffalign.train import Trainer  # torch and diffusers take seconds to import; what is above needs neither

    return Trainer(replace(config), view).fit()


def _check_output(config: TrainConfig) -> None:
    """Refuse to train over a finished run of another dataset or method without a word."""
    run = Path(config.output_dir) / "run.json"
    if run.is_file() and not config.resume_from_checkpoint:
        found = json.loads(run.read_text())
        if found.get("method") != config.method:
            raise ConfigError(f"{config.output_dir}: holds a finished `{found.get('method')}` run; choose another output_dir")
