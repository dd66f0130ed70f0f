"""A personalised run as files for others: its branch, its encoder and some users, without a word on this machine or its users' names.

But for encoder one_hot, which is a table of its training users, by name: their ids are in the export.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffalign.core import tensor_files as files
from diffalign.core.errors import CheckpointError
from diffalign.core.runs import RUN, Run
from diffalign.infer.export.card import public
from diffalign.models.users.encoders import MixtureEncoder, OneHotEncoder
from diffalign.models.users.store import BRANCH, ENCODER, load_encoder, load_tokens

PATHS = ("base", "model", "vae", "features", "profiles", "vectors")  # keys whose values may say where files lie
FOLDER = "users"


def write_personal(run: Run, users: Sequence[Path], folder: Path) -> None:
    """Write branch, encoder, run.json and copies of the files `users` to `folder`.

    Raises CheckpointError for weights that are missing and for a user of another run.
    """
    for name in (BRANCH, ENCODER):
        if not (run.folder / name).is_file():
            raise CheckpointError(f"{run.folder}: the run's weights are missing; expected {name}")
    encoder = load_encoder(run.folder / ENCODER)
    fingerprint = encoder.fingerprint()
    for file in users:
        load_tokens(file, fingerprint)
    shutil.copyfile(run.folder / BRANCH, folder / BRANCH)
    tensors, facts = files.read(run.folder / ENCODER)
    sizes = json.loads(facts["sizes"])
    if not isinstance(encoder, OneHotEncoder):  # which serves nobody but its training users, by their names
        sizes["users"] = []
    if isinstance(encoder, MixtureEncoder):  # new users are fitted from the mean; what each one likes is not for others
        tensors["logits.weight"] = encoder.usual()[None]
    settings = _public(json.loads(facts["settings"]))
    files.write(folder / ENCODER, tensors, facts | {"settings": json.dumps(settings), "sizes": json.dumps(sizes)})
    (folder / RUN).write_text(json.dumps(_public(dict(run.facts)), indent=2) + "\n")
    for file in users:
        (folder / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(file, folder / FOLDER / file.name)


def _public(facts: Any) -> Any:
    """Return `facts` with hub ids as they are, and the last part alone of local paths."""
    if isinstance(facts, list):
        return [_public(value) for value in facts]
    if not isinstance(facts, dict):
        return facts
    return {name: _named(value) if name in PATHS and isinstance(value, str) else _public(value) for name, value in facts.items()}


def _named(value: str) -> str:
    if value.startswith("open_clip:"):  # ARCHITECTURE, and a tag or a file
        head, _, weights = value.rpartition(":")
        return f"{head}:{Path(weights).name}"
    return public(value)
