"""`diffalign data correct`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffalign.core.errors import ConfigError

ABOUT = "write a table with corrected labels"
HELP = """The file has a line for each correction, {"record": "000017", "label": "right"}: left or right where the first or second candidate
is preferred, tie, both_bad, or null to leave the record out. The page Data of `diffalign app` writes such files.
examples:
  diffalign data correct --dataset_name votes --corrections corrections.jsonl --output_dir votes-corrected
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Write a table with the labels that a file corrects; the dataset itself stays as it is."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    corrections: str
    """File of corrections."""
    output_dir: str
    """Folder of the new table."""
    overwrite: bool = False
    """Replace a table that lies in output_dir."""


def run(config: CONFIG) -> int:
    """Write the table, and say how many labels it corrects."""
    from diffalign.data.corrections import Corrections
    from diffalign.data.importing import open_any
    from diffalign.data.table import check_free, write_table

    corrections, path = Corrections(Path(config.corrections)), Path(config.output_dir)
    if not corrections.file.is_file():
        raise ConfigError(f"`corrections`: {config.corrections}: there is no such file")
    labels = corrections.labels()
    check_free(path, config.overwrite)
    table = open_any(config.dataset_name)
    if unknown := labels.keys() - set(table.column("id")):
        raise ConfigError(
            f"{config.corrections}: {config.dataset_name} has no record `{min(unknown)}`, nor {len(unknown) - 1} others of it"
        )
    corrected = write_table(path, corrections.apply(table), overwrite=config.overwrite, dataset_name=config.dataset_name)
    removed = len(table) - len(corrected)
    print(f"{len(labels) - removed} labels corrected, {removed} removed -> {path}")
    return 0
