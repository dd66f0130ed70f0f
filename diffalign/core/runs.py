"""Finished runs, as they lie on disk: `Run.open` is the only reader of run.json, whose presence says that a run is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.core.claim import settle
from diffalign.core.errors import CheckpointError
from diffalign.core.keys import Kind

RUN, CONFIG = "run.json", "config.yaml"
SCORER = "a scorer and no generator; use it as the scorer {{trained: {{path: {folder}}}}}"
INSTEAD = {"image": "draws pictures", "text": "answers with texts"}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run of `diffalign train`."""

    folder: Path
    kind: Kind  # of model
    method: str
    inference: str  # how the result is used: plain, negative_guidance, user or reward
    base: str  # the model it started from: folder or hub id
    tuning: str  # lora, dora, full or user
    facts: Mapping[str, Any]  # all of run.json

    @classmethod
    def open(cls, folder: str | Path, *, expects: Kind | tuple[Kind, ...] = ("image", "text")) -> Run:
        """Return the run in `folder`, of one of the kinds `expects`.

        Raises CheckpointError where there is none, where run.json is damaged, or where the run is of another kind.
        """
        run = cls._read(Path(folder))
        kinds = (expects,) if isinstance(expects, str) else expects
        if run.kind not in kinds:
            what = SCORER.format(folder=folder) if run.kind == "reward" else f"which {INSTEAD[run.kind]}; expected one of kind {kinds[0]}"
            raise CheckpointError(f"{folder}: a run of {run.method}, {what}")
        return run

    @classmethod
    def _read(cls, folder: Path) -> Run:
        file = folder / RUN
        if not file.is_file():
            settle(folder, during_claim=True)  # it may be all that a killed run has left of an earlier one
        if not file.is_file():
            raise CheckpointError(f"{folder}: no finished run (it has no {RUN}); expected the output_dir of `diffalign train`")
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            texts = [facts["method"], facts["base"], facts["train_method"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{file}: damaged, or of no run of diffalign ({error!r})") from error
        kind, inference = facts.get("kind", "image"), facts.get("inference", "plain")
        if kind not in ("image", "text", "reward") or not all(isinstance(text, str) for text in [*texts, inference]):
            raise CheckpointError(f"{file}: of no run that this version knows (kind {kind!r}, inference {inference!r})")
        method, base, tuning = texts
        return cls(folder, kind, method, inference, base, tuning, facts)

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Return whether `folder` holds a finished run."""
        return (Path(folder) / RUN).is_file()

    @property
    def component(self) -> str:
        """Return what the folder of a fully trained network is called: unet, transformer or model."""
        return self.facts.get("component", "unet")

    @property
    def full(self) -> bool:
        """Return whether all weights of the network were trained."""
        return self.tuning == "full"

    @property
    def personal(self) -> bool:
        """Return whether its pictures are for a user."""
        return self.inference == "user"

    @property
    def steers(self) -> bool:
        """Return whether its result is for the unconditional branch of guidance (Diffusion-NPO, Self-NPO)."""
        return self.inference == "negative_guidance"

    @property
    def precision(self) -> str:
        """Return the precision of the training: no, fp16 or bf16."""
        return self.facts.get("mixed_precision", "no")


def scorers_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `specs` of the scorers that gave a table its scores, by name, and which names ranked its candidates (`ranked_by`).

    A run keeps them: its table may be moved, and who judges the run has to know.
    """
    specs = {scorer["name"]: scorer.get("spec", scorer["name"]) for scorer in manifest.get("scorers", [])}
    generated = manifest.get("generated")
    ranked_by = [] if generated is None else [generated["rank_by"]] if generated.get("rank_by") else list(specs)
    return {"specs": specs, "ranked_by": ranked_by}
