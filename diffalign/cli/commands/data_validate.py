"""`diffalign data validate`."""

from __future__ import annotations

from dataclasses import dataclass

ABOUT = "look for what would spoil training"
HELP = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Look for what would spoil training: broken or tiny images, contradicting labels, duplicates, no strict pair, and columns (file type,
    size, bytes, crop, sharpness, model) that tell the preferred image without a look at it."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    resolution: int | None = None
    """Warn of images smaller than this many pixels."""
    aspect_ratio_buckets: str | None = None
    """Training sizes "height,width;height,width" that the crop is measured for; a square if not given."""


def run(config: CONFIG) -> int:
    """Print problems; exit status 1 if there are any."""
    from diffalign.data.importing import open_any
    from diffalign.data.inspect import label_counts, trained_rows
    from diffalign.data.problems import validate
    from diffalign.methods.checks import parse_buckets

    buckets = parse_buckets(config.aspect_ratio_buckets)
    table = open_any(config.dataset_name)
    problems = [f"dropped: {row['reason']}" for row in table.manifest["rejected"]] + validate(table, config.resolution, buckets)
    for problem in problems:
        print(problem)
    print(trained_rows(label_counts(table), len(table)))
    print(f"{len(table)} rows, {len(problems)} problems")
    return 1 if problems else 0
