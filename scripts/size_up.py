# python -m scripts.size_up; python -m scripts.size_up SDXL
"""The tables of docs/tasks/size_up.md: what `diffalign plan` prints of published models, whose configs stand in for their weights.

SD 1.5 and SDXL are whole. Of FLUX.1 and Qwen-Image the denoiser is the published one and the encoders are a small model's, whose
outputs have the published shapes; so the time to fill a cache is left out.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from diffalign.methods.builders.dry_run import Counts
from diffalign.methods.builders.meta_model import Outline, outline
from diffalign.methods.builders.plan import DEVICES, Plan, columns, forward_flops, passes
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.backbones.published import PUBLISHED, write_configs
from scripts.model_memory import published_outline

FILE = Path(__file__).resolve().parents[1] / "docs" / "tasks" / "size_up.md"
MARK = "<!-- end -->"  # of the tables
PICK_A_PIC = Counts(851_293, 1_702_586, 58_960)
GPUS = (1, 8, 64)
SHARED = {"mixed_precision": "bf16", "gradient_checkpointing": True, "max_train_steps": 2000}
FULL = {**SHARED, "train_method": "full", "train_batch_size": 4, "optimizer": "adafactor"}
LORA = {**SHARED, "train_batch_size": 4, "rank": 8}
# By title: the model of PUBLISHED, or family, model and latent; what differs from the defaults; records a step.
CASES: dict[str, tuple[str | tuple[str, str, tuple[int, int, int]], dict[str, Any], int]] = {
    "SD 1.5 at 512 px, all weights": ("v1", {**FULL, "optimizer": "adamw", "resolution": 512}, 2048),
    "SDXL at 1024 px, all weights, Adafactor": ("xl_base", {**FULL, "resolution": 1024}, 2048),
    "SDXL at 1024 px, LoRA": ("xl_base", {**LORA, "resolution": 1024}, 256),
    "FLUX.1 at 1024 px, LoRA": (("flux", "Flux-dev", (16, 128, 128)), {**LORA, "max_sequence_length": 512}, 256),
    "FLUX.1 at 1024 px, all weights, Adafactor": (
        ("flux", "Flux-dev", (16, 128, 128)),
        {**FULL, "train_batch_size": 1, "max_sequence_length": 512},
        256,
    ),
    "Qwen-Image at 1024 px, LoRA": (("qwen_image", "Qwen-Image", (16, 128, 128)), {**LORA, "train_batch_size": 1}, 256),
}


def drawn(case: str, work: Path) -> tuple[TrainConfig, Outline, int]:
    """Return config, model without numbers, and records a step of a case."""
    model, options, batch = CASES[case]
    if not isinstance(model, str):
        return *published_outline(model[0], model[1], model[2], work, **options), batch
    folder = work / model
    if not folder.exists():
        folder.mkdir()
        write_configs(PUBLISHED[model], folder)
    config = TrainConfig(pretrained_model_name_or_path=str(folder), dataset_name="pairs", **options)
    return config, outline(config, recipe_of(config), torch.device("cuda")), batch


def section(case: str, work: Path) -> str:
    """Return the table of a case, in Markdown."""
    config, model, batch = drawn(case, work)
    recipe, (name, _, _) = recipe_of(config), CASES[case]
    plan = Plan(PICK_A_PIC, DEVICES["h100"], 0.35, batch=batch, encodes=isinstance(name, str))
    taken, flops = passes(config, recipe), forward_flops(config, model)
    head, *rows = columns(config, recipe, model, plan, GPUS)
    lines = [f"| {what} | {' | '.join(values)} |" for what, values in (head, ("---", ["---"] * len(GPUS)), *rows)]
    text = f"A forward pass of a picture is {flops / 1e12:.3g}e12 FLOP; a pair takes as much as {taken.total} of them."
    return "\n".join([f"### {case}", "", text, "", *lines, ""])


def main(*cases: str) -> None:
    """Write the tables of all cases, or of those whose title begins with one of `cases`, into the page."""
    with tempfile.TemporaryDirectory() as work:
        for case in CASES:
            if not cases or case.startswith(cases):
                page, old = FILE.read_text(), re.compile(rf"### {re.escape(case)}\n.*?(?=\n###|{MARK})", re.S)
                new = section(case, Path(work))
                FILE.write_text(old.sub(lambda _: new, page) if old.search(page) else page.replace(MARK, f"{new}\n{MARK}"))  # noqa: B023  # called at once


if __name__ == "__main__":
    main(*sys.argv[1:])
