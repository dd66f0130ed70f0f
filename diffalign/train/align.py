"""Training in one call, from a config to a finished run. What imports torch comes after the checks."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from diffalign.core.claim import claim, settle
from diffalign.core.errors import ConfigError, TableError
from diffalign.core.locks import locked
from diffalign.core.processes import process_state
from diffalign.data.records import Record
from diffalign.data.table import is_table, write_table
from diffalign.data.view import View
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.checks import check
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping
from diffalign.methods.recipe import Recipe

logger = logging.getLogger(__name__)


def align(
    model: str | Path, data: str | Path | Iterable[Record], *, method: str = "diffusion_dpo", output_dir: str | Path, **options: Any
) -> Path:
    """Fine-tune `model` on preferences and return the folder with the result, for `diffalign.load`.

    Args:
        model: folder in diffusers layout, causal language model, or hub id.
        data: preference table, dataset file, folder or hub id, or records.
        method: a published method, a key of `diffalign.METHODS`.
        output_dir: folder of the run.
        options: any other key of `diffalign.TrainConfig`. What draws its own data, by `generate`, is `diffalign.train.rounds.train`'s.

    Raises ConfigError, RecordError, TableError or CheckpointError before any weight loads where the input cannot be meant.

    Example:
        >>> align("assets/tiny-sd", "pairs.parquet", output_dir="outputs/mine", max_train_steps=100)  # doctest: +SKIP
    """
    named = isinstance(data, str | Path)
    if not isinstance(output_dir, str | Path):
        raise ConfigError(f"`output_dir` is {output_dir!r}; expected the folder of the run")
    if not named and (isinstance(data, Mapping) or not isinstance(data, Iterable)):
        raise ConfigError(f"`data` is a {type(data).__name__}; expected the name of a table, file, folder or dataset, or records")
    path = Path(output_dir) / "data"
    values: Mapping[str, Any] = {
        "pretrained_model_name_or_path": str(model),
        "dataset_name": str(data if named else path),
        "method": method,
        "output_dir": str(output_dir),
        **options,
    }
    config = from_mapping(values, "diffalign.align")
    return train(config, None if named else _checked(data))


def _checked(records: Iterable[Any]) -> Iterator[Record]:
    """Yield records. Raises ConfigError for the first thing that is none."""
    for number, record in enumerate(records):
        if not isinstance(record, Record):
            raise ConfigError(f"`data`: entry {number} is a {type(record).__name__}; expected a diffalign.Record")
        yield record


def train(config: TrainConfig, records: Iterable[Record] | None = None) -> Path:
    """Run a training config from its checks to its last step; return the output folder. Rounds are `diffalign.train.rounds.train`'s.

    `records` are first written to `dataset_name` as a table.
    """
    if config.generate:
        raise ConfigError(
            "`generate` draws the data, and here they must be there already; call diffalign.train.rounds.train(TrainConfig(...))"
        )
    folder = run(config, records)
    process_state().destroy_process_group()
    return folder


def run(config: TrainConfig, records: Iterable[Record] | None = None) -> Path:
    """Do what `train` does, and keep the processes of a launch together for what comes next."""
    folder, first = Path(config.output_dir), int(os.environ.get("RANK", "0")) == 0
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if first:
        settle(folder)  # what a killed run may have left
    recipe = check(config)
    patterns, resumed = _earlier(config) if config.overwrite_output_dir or config.resume_from_checkpoint else ((), None)
    if launched:
        process_state().wait_for_everyone()  # so that no process looks for an earlier run that has been moved
    with locked(folder) if first else nullcontext(), claim(folder, patterns if first else ()):
        if records is not None:
            write_table(Path(config.dataset_name), records, overwrite=is_table(config.dataset_name))
        if config.prompts:
            from diffalign.train.trainer import make_online_trainer

            return make_online_trainer(config, recipe).fit()
        if first:
            logger.info("data %s", config.dataset_name)
        view = _open_together(config, recipe) if launched else open_dataset(config, recipe)
        from diffalign.train.trainer import make_trainer  # torch and diffusers take seconds to import; what is above needs neither

        return make_trainer(config, recipe, view, fit=resumed is None).fit()


def _earlier(config: TrainConfig) -> tuple[Sequence[str], Path | None]:
    """Return the patterns of what is moved aside of an earlier run, and the checkpoint that the run goes on from."""
    from diffalign.train import checkpoint
    from diffalign.train.results import replaced_by

    resumed = checkpoint.find(Path(config.output_dir), config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    return replaced_by(config), resumed


def _open_together(config: TrainConfig, recipe: Recipe) -> View:
    """Open the dataset in every process of a launch; the first one imports it, the others read what it wrote.

    On a machine with a disk of its own the first process of that machine imports it, too. Raises TableError where they have read different
    data.
    """
    from accelerate.utils import gather_object

    state = process_state()
    with state.main_process_first(), state.local_main_process_first():
        view = open_dataset(config, recipe, reuse=not state.is_main_process)
    everywhere: list[tuple[str, str]] = gather_object([(socket.gethostname(), view.table.fingerprint)])
    first = everywhere[0][1]
    if odd := [host for host, table in everywhere if table != first]:
        raise TableError(
            f"{view.table.path}: on {odd[0]} this table is not that of {everywhere[0][0]}, as an earlier run may have left it; remove it "
            f"on {odd[0]}"
        )
    return view
