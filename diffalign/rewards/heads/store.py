"""A trained head as a file: safetensors, written whole, with what is needed to build it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffalign.core import tensor_files as files
from diffalign.core.documents import parse_json
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.runs import Run
from diffalign.rewards.heads.embeds import Embeds, load_embeds
from diffalign.rewards.heads.networks import HeadSizes, RewardHead
from diffalign.rewards.heads.settings import HEADS
from diffalign.rewards.heads.table import make, name_of

FILE = "reward_head.safetensors"


def save_head(head: RewardHead, file: Path, *, embeds: str, beta: float) -> None:
    """Write a head, the fingerprint of the embeddings it reads, and the beta that its rewards are multiplied with to become logits."""
    facts = {"head": name_of(head.settings), "settings": json.dumps(asdict(head.settings)), "sizes": json.dumps(asdict(head.sizes))}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in head.state_dict().items()}
    files.write(file, tensors, facts | {"embeds": embeds, "beta": repr(beta)})


def load_head(file: Path) -> tuple[RewardHead, str, float]:
    """Return (head, embeds, beta), the head in eval mode and without gradients. Raises CheckpointError if the file holds none."""
    tensors, facts = files.read(file)
    if facts.get("head") not in HEADS:
        raise CheckpointError(f"{file}: holds no reward head; expected the {FILE} of a run of reward_bt or another reward method")
    try:
        sizes: dict[str, Any] = parse_json(facts["sizes"], f"{file}, sizes", CheckpointError)
        settings, beta = HEADS[facts["head"]](**parse_json(facts["settings"], f"{file}, settings", CheckpointError)), float(facts["beta"])
        with torch.device("meta"):  # whatever sizes the file claims, nothing is allocated for them
            head = make(settings, HeadSizes(**{**sizes, "users": tuple(sizes["users"])}))
        head.load_state_dict({name: value.clone() for name, value in tensors.items()}, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{file}: does not hold the reward head it names ({error})") from error
    if odd := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{file}: {odd[0]} is not of finite numbers")
    return head.requires_grad_(False).eval(), facts.get("embeds", ""), beta


def head_of(folder: Path) -> tuple[Run, RewardHead, str, float]:
    """Return (run, head, fingerprint of its embeddings, beta) of a run's folder. Raises CheckpointError for one without such a run."""
    run = Run.open(folder, expects="reward")
    if not (folder / FILE).is_file():
        raise CheckpointError(f"{folder}: the run's weights are missing; expected {FILE}")
    return run, *load_head(folder / FILE)


def embeds_of(run: Run, source: str, device: torch.device | str = "cpu") -> Embeds:
    """Return the embeddings that a run's head reads. Raises CheckpointError where they are no longer those of `source`."""
    embeds = load_embeds(run.base, run.facts["revision"], device)
    if embeds.fingerprint != source:
        raise CheckpointError(f"{run.folder}: made on other embeddings than {run.base} gives now; a head is only good with its own")
    return embeds
