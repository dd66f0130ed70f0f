"""Finished runs, as they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffalign.core.errors import CheckpointError

RUN = "run.json"


def run_facts(folder: Path) -> dict[str, Any]:
    """Return run.json of a finished run that generates. Raises CheckpointError where there is none, or one that judges."""
    if not (folder / RUN).is_file():
        raise CheckpointError(f"{folder}: no finished training run (it has no {RUN}); expected the output_dir of `diffalign train`")
    run = json.loads((folder / RUN).read_text())
    if run.get("kind") == "reward":
        raise CheckpointError(
            f"{folder}: a run of {run['method']}, a scorer and no generator; use it as the scorer {{trained: {{path: {folder}}}}}"
        )
    return run


def scorers_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `specs` of the scorers that gave a table its scores, by name, and which names ranked its candidates (`ranked_by`).

    A run keeps them: its table may be moved, and who judges the run has to know.
    """
    specs = {scorer["name"]: scorer.get("spec", scorer["name"]) for scorer in manifest.get("scorers", [])}
    generated = manifest.get("generated")
    ranked_by = [] if generated is None else [generated["rank_by"]] if generated.get("rank_by") else list(specs)
    return {"specs": specs, "ranked_by": ranked_by}
