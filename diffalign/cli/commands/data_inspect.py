"""`diffalign data inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ABOUT = "show what a dataset holds"
HELP = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Show what a table or dataset holds: counts, label balance, ties, users, resolutions, and a sheet of rows as PNG."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    contact_sheet: str | None = None
    """Where to write the sheet of rows; in the table's folder, or beside a file or folder of another kind, if not given."""
    aspect_ratio_buckets: str | None = None
    """Training sizes "height,width;height,width" that the crop is measured for; a square if not given."""
    rows: int = 8
    """Rows on the sheet."""
    seed: int = 0
    """Seed that chooses the rows."""


def run(config: CONFIG) -> int:
    """Print a summary and write the contact sheet."""
    from diffalign.data.importing import open_any
    from diffalign.data.inspect import render_summary, summary
    from diffalign.data.sheet import contact_sheet, preview
    from diffalign.methods.checks import parse_buckets

    buckets = parse_buckets(config.aspect_ratio_buckets)
    table = open_any(config.dataset_name)
    print(render_summary(summary(table, buckets)))
    if table.manifest["kind"] != "image":
        print("\n".join(preview(table, config.rows)))
        return 0
    path = Path(config.contact_sheet) if config.contact_sheet else _beside(config.dataset_name)
    if path is None:
        print("no sheet of rows; name a file for it with --contact_sheet")
        return 0
    contact_sheet(table, path, rows=config.rows, seed=config.seed)
    print(f"sheet of {min(config.rows, len(table))} rows: {path}")
    return 0


def _beside(dataset_name: str) -> Path | None:
    """Return where the sheet of a dataset lies: in the folder of a table, beside a file or folder; None for a hub id."""
    from diffalign.data.table import is_table

    data = Path(dataset_name).expanduser()
    if is_table(data):
        return data / "contact_sheet.png"
    return data.resolve().with_name(f"{data.resolve().name}.contact_sheet.png") if data.exists() else None
