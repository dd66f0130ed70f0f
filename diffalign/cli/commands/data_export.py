"""`diffalign data export`."""

from __future__ import annotations

from dataclasses import dataclass

ABOUT = "write labelled pairs as parquet, JSONL or CSV"
HELP = """examples:
  diffalign data export --dataset_name votes.db --destination votes.parquet     Pick-a-Pic's columns, pictures inside
  diffalign data export --dataset_name votes --destination votes.csv            prompt, image_0, image_1, label_0; pictures in votes_images/
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Write the labelled pairs of pictures of a dataset, or the votes of a vote store, as a file that other programs read."""

    dataset_name: str
    """Preference table, vote store, dataset file, folder, or hub id."""
    destination: str
    """File to write: .parquet, .jsonl or .csv."""


def run(config: CONFIG) -> int:
    """Write it and say how many pairs it holds."""
    from diffalign.data.export import export_pairs
    from diffalign.data.importing import open_any

    pairs = export_pairs(open_any(config.dataset_name), config.destination)
    print(f"{pairs} labelled pairs -> {config.destination}")
    return 0
