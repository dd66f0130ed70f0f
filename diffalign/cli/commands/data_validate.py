"""`diffalign data validate`."""

from __future__ import annotations

from dataclasses import dataclass

ABOUT = "look for what would spoil training"
HELP = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Look for what would spoil training: broken or tiny images, contradicting labels, duplicates, no strict pair."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    resolution: int | None = None
    """Warn of images smaller than this many pixels."""


def run(config: CONFIG) -> int:
    """Print problems; exit status 1 if there are any."""
    from diffalign.data.importing import open_any
    from diffalign.data.inspect import validate

    table = open_any(config.dataset_name)
    problems = [f"dropped: {row['reason']}" for row in table.manifest["rejected"]] + validate(table, resolution=config.resolution)
    for problem in problems:
        print(problem)
    print(f"{len(table)} rows, {len(problems)} problems")
    return 1 if problems else 0
