"""`diffalign data import`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffalign.data.readers import READERS

ABOUT = "read a dataset into a table; after a kill the same command goes on"
HELP = "layouts:\n" + "".join(f"  {name:24} {reader.about}\n" for name, reader in READERS.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Read a dataset into a preference table: rows kept, and rows dropped with reasons."""

    dataset_name: str
    """Dataset file, folder, or hub id, or a table."""
    output_dir: str
    """Folder of the new table."""
    reader: str | None = None
    """Dataset layout; found by its columns if not given."""
    dataset_split_name: str | None = None
    """Split of the dataset, for example train."""
    max_train_samples: int | None = None
    """Read only so many rows."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and list them, instead of stopping at the first."""
    overwrite: bool = False
    """Replace a table that lies in output_dir."""
    merge: bool = False
    """Make one row of all labels that a pair has: label_0 becomes the share of them that prefer the first candidate."""
    num_proc: int = 1
    """Processes that parse rows and check pictures."""


def run(config: CONFIG) -> int:
    """Import, and say what was kept and what was not."""
    from diffalign.data.duplicates import repeat_warning
    from diffalign.data.importing import import_dataset  # pyarrow takes a while to import

    table = import_dataset(
        config.dataset_name,
        Path(config.output_dir),
        reader=config.reader,
        split=config.dataset_split_name,
        skip_bad=config.skip_bad,
        overwrite=config.overwrite,
        limit=config.max_train_samples,
        merge=config.merge,
        num_proc=config.num_proc,
    )
    facts = table.manifest
    print(f"{facts['rows']} rows kept, {facts['rejected_rows']} dropped, read as {facts['reader']} -> {table.path}")
    if config.merge:
        print(f"  {facts['merged_from']} rows were read, and the labels of each pair merged into one")
    elif (repeats := repeat_warning(facts["repeats"])) is not None:
        print(f"  warning: {repeats}")
    for row in facts["rejected"][:20]:
        print(f"  dropped: {row['reason']}")
    if facts["rejected_rows"] > 20:
        print(f"  ... and {facts['rejected_rows'] - 20} more; the first 1000 are listed in {table.path / 'manifest.json'}")
    return 0
