"""`diffalign votes add`."""

from __future__ import annotations

from dataclasses import dataclass

ABOUT = "put the pictures of a dataset to the vote"
HELP = """examples:
  diffalign votes add --dataset_name votes.db --source pictures.parquet
  diffalign votes add --dataset_name votes.db --source pairs/            (folders w and l, or any layout of `diffalign data import`)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Add the pictures of a table, file or folder to a vote store, as pairs to vote on; the labels that it has are left out."""

    dataset_name: str
    """Vote store, made if there is none."""
    source: str
    """Preference table, dataset file, folder, or hub id."""


def run(config: CONFIG) -> int:
    """Add them and say how many were new."""
    from diffalign.data.importing import open_any
    from diffalign.data.store import VoteStore

    with VoteStore(config.dataset_name) as store:
        new = store.add_records(open_any(config.source))
        print(f"{new} new pictures, {store.unseen()} pairs that nobody has seen -> {config.dataset_name}")
    return 0
