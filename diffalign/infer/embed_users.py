"""The users of a dataset, and their tokens as files."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffalign.core.errors import ConfigError, TableError, did_you_mean
from diffalign.core.progress import progress
from diffalign.core.runs import Run
from diffalign.data.importing import import_dataset
from diffalign.data.table import is_table, read_table
from diffalign.data.transforms import pairs
from diffalign.data.view import View
from diffalign.infer.load import load
from diffalign.infer.users.pipeline import shortlist
from diffalign.models.users.choices import Choice, read_choices
from diffalign.models.users.settings import check_sliders

logger = logging.getLogger(__name__)
SUFFIX, LONGEST = ".safetensors", 100  # bytes of a user's id in a file's name
READS = {"one_hot": "the id that it had in training", "profile": "a text", "vector": "a tensor of numbers (for_user)"}
READS["slider"] = "values of sliders"


def embed_users(
    output_dir: str | Path,
    dataset_name: str,
    destination: str | Path,
    *,
    reader: str | None = None,
    split: str | None = None,
    user_id: str | None = None,
    max_pairs: int | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> list[Path]:
    """Write the tokens of the user `user_id`, or of a dataset's only one, to the file `destination`, and return the files.

    Of several users, one file each in the folder `destination`; the first `max_pairs` of a user are read. Raises ConfigError, before any
    weight loads, for a user without pairs, files that are there already (unless `overwrite`) and a run that is not personalised;
    RecordError for an image that does not decode.
    """
    check_personal(output_dir, reads="pairs")
    with opened(dataset_name, reader, split) as view:
        by_user = pairs_of(view, user_id)
        files = _files(by_user, Path(destination), overwrite=overwrite)
        personal = load(output_dir, device=device)
        bar = progress(files.items(), desc="embed users", unit="users", hidden=len(files) < 2)
        made = {file: personal.for_user([view[position] for position in by_user[user][:max_pairs]]) for user, file in bar}
        for file, one in made.items():  # only once all could be made
            one.save(file)
    return list(files.values())


def embed_profile(output_dir: str | Path, profile: str, destination: str | Path, *, overwrite: bool = False, device: str = "cpu") -> Path:
    """Write the tokens of a user whom a text describes to the file `destination`, and return it; for a run with user_encoder profile."""
    check_personal(output_dir, reads="a text")
    (file,) = _files({"": [0]}, Path(destination), overwrite=overwrite).values()
    load(output_dir, device=device).for_user(profile=profile).save(file)
    return file


def embed_sliders(
    output_dir: str | Path, values: Mapping[str, float], destination: str | Path, *, overwrite: bool = False, device: str = "cpu"
) -> Path:
    """Write the tokens of sliders, each at its value in [0, 1], to the file `destination`, and return it.

    Raises ConfigError for a run without sliders, a name or value that is none, and where all are off.
    """
    check_personal(output_dir, reads=READS["slider"])
    check_sliders(values, Run.open(output_dir).facts["user_encoder"]["slider"]["attributes"])
    (file,) = _files({"": [0]}, Path(destination), overwrite=overwrite).values()
    load(output_dir, device=device).for_user(values).save(file)
    return file


def choices_of(dataset_name: str, user_id: str | None = None, *, reader: str | None = None, split: str | None = None) -> list[Choice]:
    """Return the choices of one user of a dataset. Raises ConfigError without an id for a dataset of several users."""
    with opened(dataset_name, reader, split) as view:
        by_user = pairs_of(view, user_id)
        if len(by_user) > 1:
            raise ConfigError(
                f"{dataset_name}: has {len(by_user)} users; name one with --user_id.{did_you_mean('', shortlist('', by_user))}"
            )
        return read_choices(view[position] for positions in by_user.values() for position in positions)


def check_personal(output_dir: str | Path, *, reads: str) -> None:
    """Raise ConfigError for a run that is not personalised or reads something else of users, CheckpointError where there is none."""
    run = Run.open(output_dir)
    if not run.personal:
        raise ConfigError(f"{output_dir}: a run of {run.method}, which is not personalised; expected one of ppd")
    (encoder,) = run.facts["user_encoder"]
    if (evidence := READS.get(encoder, "pairs")) != reads:
        raise ConfigError(f"{output_dir}: its user_encoder {encoder} reads of a user {evidence}, and not {reads}")


@contextmanager
def opened(dataset_name: str, reader: str | None, split: str | None) -> Iterator[View]:
    """Give the labelled pairs of a table, or of another dataset, which is read anew. Raises RecordError for the first bad row."""
    with tempfile.TemporaryDirectory(prefix="diffalign-") as folder:
        if is_table(dataset_name):
            table = read_table(dataset_name)
        else:
            table = import_dataset(dataset_name, Path(folder) / "table", reader=reader, split=split)
        if table.manifest["kind"] != "image":
            raise TableError(f"{dataset_name}: a table of {table.manifest['kind']}s; a user's choices are pairs of images")
        yield View(table, [pairs])


def pairs_of(view: View, user_id: str | None = None) -> dict[str, list[int]]:
    """Return the positions of each user's strict pairs, or of one user's.

    Records without a user are one user's, called "", where no record names one; else they are left out, and counted in the log.
    Raises ConfigError if a user, or everybody, has none.
    """
    by_user: dict[str, list[int]] = {}
    for position, entry in enumerate(view.entries):
        strict = by_user.setdefault(entry.user or "", [])
        if entry.prob != 0.5:
            strict.append(position)
    if len(by_user) > 1 and (nameless := by_user.pop("", None)) and user_id is None:
        logger.warning("%d pairs name no user, and are left out", len(nameless))
    if user_id is not None and user_id not in by_user:
        raise ConfigError(f"{view.table.path}: no pairs of the user {user_id!r}.{did_you_mean(user_id, shortlist(user_id, by_user))}")
    chosen = {user: positions for user, positions in by_user.items() if positions and user_id in (None, user)}
    if not chosen:
        whose = "" if user_id is None else f" of the user {user_id!r}"
        raise ConfigError(f"{view.table.path}: no pair{whose} with a preference among {len(view)} records; expected at least one")
    return chosen


def _files(by_user: Mapping[str, object], destination: Path, *, overwrite: bool) -> dict[str, Path]:
    """Return each user's file. Raises ConfigError for a destination of the wrong kind, or one that is taken."""
    if len(by_user) == 1 and destination.suffix != SUFFIX:
        raise ConfigError(f"`destination`: {destination} is for one user; expected a file whose name ends in {SUFFIX}")
    if len(by_user) > 1 and (destination.suffix == SUFFIX or destination.is_file()):
        raise ConfigError(f"`destination`: {destination} is one file, for {len(by_user)} users; give a folder, or one user with --user_id")
    # Of files whose names differ in case alone, some systems keep one.
    taken = Counter(_name(user).casefold() for user in by_user)
    names = {user: _name(user, apart=taken[_name(user).casefold()] > 1) for user in by_user}
    files = {user: destination if len(by_user) == 1 else destination / names[user] for user in by_user}
    there = [file for file in files.values() if file.exists()]
    if there and not overwrite:
        raise ConfigError(f"`destination`: {there[0]} is there already; choose another place, or replace it with --overwrite")
    return files


def _name(user: str, *, apart: bool = False) -> str:
    """Return the name of a user's file; letters that a name cannot have are replaced, long ids cut, and a hash keeps such users apart."""
    plain = re.sub(r"[^\w.-]|^\.", "_", user).encode()[:LONGEST].decode(errors="ignore") or "_"
    return f"{plain}{SUFFIX}" if plain == user and not apart else f"{plain}-{hashlib.sha256(user.encode()).hexdigest()[:8]}{SUFFIX}"
