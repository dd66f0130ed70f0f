"""Finished runs, as they lie on disk: `Run.open` is the only reader of run.json, whose presence says that a run is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.core.claim import settle
from diffalign.core.documents import check_types, read_mapping
from diffalign.core.errors import CheckpointError, shortened
from diffalign.core.keys import Kind
from diffalign.core.redaction import redacted

RUN, CONFIG = "run.json", "config.yaml"
INSTEAD = {"image": "draws pictures", "text": "answers with texts"}

LONGEST_NAME = 1_000  # bytes of a folder or hub id
# What run.json holds, where it is there and not null.
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("method", "base", "train_method", "kind", "inference", "component", "mixed_precision"), (str,)),
    **dict.fromkeys(("revision", "variant", "vae", "denoiser", "table", "stopped", "chat_template"), (str,)),
    **dict.fromkeys(("steps", "skipped", "seed", "batch", "records", "resolution", "max_sequence_length"), (int,)),
    **dict.fromkeys(("user_encoder", "scorers", "best"), (dict,)),
    **dict.fromkeys(("rounds", "base_lora"), (list,)),
    "conversational": (bool,),
}
# Key, what an older run means that lacks it, and the values that there are.
VALUES = (
    ("kind", "image", ("image", "text", "reward")),
    ("inference", "plain", ("plain", "negative_guidance", "user", "reward")),
    ("train_method", None, ("lora", "dora", "full", "user", "controlnet")),
    ("component", "unet", ("unet", "transformer", "model", "reward_head")),
    ("mixed_precision", "no", ("no", "fp16", "bf16")),
)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run of `diffalign train`."""

    folder: Path
    kind: Kind  # of model
    method: str
    inference: str  # how the result is used: plain, negative_guidance, user or reward
    base: str  # the model it started from: folder or hub id
    tuning: str  # lora, dora, full, user or controlnet
    facts: Mapping[str, Any]  # all of run.json

    @classmethod
    def open(cls, folder: str | Path, *, expects: Kind | tuple[Kind, ...] = ("image", "text")) -> Run:
        """Return the run in `folder`, of one of the kinds `expects`.

        Raises CheckpointError where there is none, where run.json is damaged, or where the run is of another kind.
        """
        run = cls._read(Path(folder))
        kinds = (expects,) if isinstance(expects, str) else expects
        if run.kind not in kinds:
            other = f"which {INSTEAD.get(run.kind)}; expected one of kind {kinds[0]}"
            what = f"a scorer and no generator; use it as {run.scorer}" if run.kind == "reward" else other
            raise CheckpointError(f"{folder}: a run of {run.method}, {what}")
        return run

    @property
    def scorer(self) -> str:
        """Return how a run of a reward method is used: as a scorer, or as the way to combine several."""
        if self.method == "reward_orchestrator":
            return f"the combiner {{prompt_weights: {{path: {self.folder}}}}}, as `how` of the scorer `combined` or as `combine` online"
        return f"the scorer {{trained: {{path: {self.folder}}}}}"

    @classmethod
    def _read(cls, folder: Path) -> Run:
        file = folder / RUN
        if not file.is_file():
            settle(folder, during_claim=True)  # it may be all that a killed run has left of an earlier one
        if not file.is_file():
            raise CheckpointError(f"{folder}: no finished run (it has no {RUN}); expected the output_dir of `diffalign train`")
        facts = redacted(read_mapping(file, CheckpointError))
        check_types(facts, TYPES, str(file), CheckpointError)
        check_types(facts.get("scorers") or {}, {"specs": (dict,), "ranked_by": (list,)}, f"{file}, scorers", CheckpointError)
        for name, default, values in VALUES:
            if (value := facts.get(name, default)) not in values:
                raise CheckpointError(f"{file}: `{name}` is {shortened(repr(value))}, which this version does not know")
        for name in ("method", "base"):
            value = facts.get(name) or ""
            if not value.isprintable() or not 0 < len(value.encode()) < LONGEST_NAME:
                raise CheckpointError(f"{file}: `{name}` is {shortened(repr(facts.get(name)))}; of no run of diffalign")
        kind, inference = facts.get("kind", "image"), facts.get("inference", "plain")
        if inference == "user" and len(facts.get("user_encoder") or ()) != 1:
            raise CheckpointError(f"{file}: `user_encoder` is missing, or not one name with its constants; of no run of a user branch")
        return cls(folder, kind, facts["method"], inference, facts["base"], facts["train_method"], facts)

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
    def conditioned(self) -> bool:
        """Return whether its pictures are drawn to conditioning images, by a ControlNet."""
        return self.tuning == "controlnet"

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


def model_name(path: str | Path, lora_scale: float = 1.0) -> str:
    """Return what tables and pages call a model: its folder, with the run's for what lies in one, or its hub id.

    >>> model_name("stabilityai/stable-diffusion-2-1"), model_name("outputs/mine", lora_scale=0.5)
    ('stabilityai/stable-diffusion-2-1', 'outputs/mine at 0.5')
    """
    name, folder = str(path), Path(path).resolve()
    if folder.is_dir():
        name = f"{folder.parent.name}/{folder.name}" if Run.is_in(folder) and (folder.parent / CONFIG).is_file() else folder.name
    return name if lora_scale == 1.0 else f"{name} at {lora_scale:g}"


def scorers_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return `specs`, the scorers that gave a table its scores, by name, and which names ranked its candidates (`ranked_by`).

    A run keeps them: its table may be moved, and who judges the run has to know.
    """
    specs = {scorer["name"]: scorer.get("spec", scorer["name"]) for scorer in manifest.get("scorers") or []}
    generated = manifest.get("generated")
    ranked_by = [] if generated is None else [generated["rank_by"]] if generated.get("rank_by") else list(specs)
    return {"specs": specs, "ranked_by": ranked_by}
