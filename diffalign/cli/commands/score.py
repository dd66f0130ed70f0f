"""What `diffalign score` does."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from diffalign.cli.options.score import ScoreConfig
from diffalign.core.errors import ConfigError
from diffalign.data.importing import import_dataset
from diffalign.data.prompts import prompts_of
from diffalign.data.table import Table, is_table, read_table, write_table


def score(config: ScoreConfig) -> int:
    """Score, and say what the numbers mean and how they lie."""
    if (config.dataset_name is None) == (config.images is None):
        raise ConfigError("`diffalign score` needs --dataset_name with a table or dataset, or --images with a folder of images")
    if config.prompts and config.images is None:
        raise ConfigError("`prompts` are for --images; the images of a dataset have prompts of their own")
    import torch

    from diffalign.rewards.score_table import check, score_table

    check(config.scorers, Path(config.output_dir), overwrite=config.overwrite)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="diffalign-") as folder:
        table = score_table(
            _opened(config, Path(folder) / "table"), config.output_dir, config.scorers, device=device, overwrite=config.overwrite
        )
    for scorer in table.manifest["scorers"]:
        print(_line(table, scorer["name"], scorer["scale"], scorer["unjudged"]))
    if nameless := sum(len(record.candidates) for record in table if not record.prompt):
        print(f"{nameless} images have no prompt; scorers that read one were given an empty one")
    print(f"{len(table)} records -> {table.path}")
    return 0


def _opened(config: ScoreConfig, folder: Path) -> Table:
    """Return the table to score; what is none yet is read into `folder`."""
    if config.images is not None:
        from diffalign.rewards.folder import images_of

        return write_table(folder, images_of(config.images, prompts_of(config.prompts)), dataset_name=config.images)
    name = config.dataset_name or ""
    if is_table(name):
        return read_table(name)
    return import_dataset(name, folder, reader=config.reader, split=config.dataset_split_name)


def _line(table: Table, name: str, scale: str, unjudged: int) -> str:
    """Return mean and range of a score over the images that have it."""
    found = [candidate.scores[name] for record in table for candidate in record.candidates if name in candidate.scores]
    left = f", {unjudged} not judged" if unjudged else ""
    if not found:
        return f"{name}: no image could be judged{left} ({scale})"
    mean = math.fsum(found) / len(found)
    return f"{name}: mean {mean:.4f}, {min(found):.4f} to {max(found):.4f}, {len(found)} images{left} ({scale})"
