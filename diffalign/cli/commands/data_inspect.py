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
    """Where to write the sheet of rows; beside the table as contact_sheet.png if not given."""
    rows: int = 8
    """Rows on the sheet."""
    seed: int = 0
    """Seed that chooses the rows."""


def run(config: CONFIG) -> int:
    """Print a summary and write the contact sheet."""
    from diffalign.data.importing import open_any
    from diffalign.data.inspect import contact_sheet, preview, render_summary, summary
    from diffalign.data.table import is_table

    table = open_any(config.dataset_name)
    print(render_summary(summary(table)))
    if table.manifest["kind"] != "image":
        print("\n".join(preview(table, config.rows)))
        return 0
    beside = table.path if is_table(config.dataset_name) else Path()
    path = Path(config.contact_sheet) if config.contact_sheet else beside / "contact_sheet.png"
    contact_sheet(table, path, rows=config.rows, seed=config.seed)
    print(f"sheet of {min(config.rows, len(table))} rows: {path}")
    return 0
