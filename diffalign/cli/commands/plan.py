"""`diffalign plan`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from diffalign.cli.parser import plain
from diffalign.core.errors import ConfigError
from diffalign.core.keys import ABOVE_ZERO, AT_LEAST_ONE, check_ranges, key
from diffalign.methods.config import TrainConfig

ABOUT = "hours, disk and memory of a training on one GPU and on many"
HELP = """examples:
  diffalign plan --config configs/diffusion_dpo_sdxl.yaml --records 851293 --distinct_prompts 58960
  diffalign plan --config configs/diffusion_dpo_sd15_lora.yaml --dataset_name votes --gpus 1 --gpu rtx4090 --rate 2.4
Nothing is loaded or written: the model's config files are read, of a hub id only these. The rate of a real GPU is
`batch` divided by `step_seconds_median` in the run.json of a short run.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG(TrainConfig):
    """Say what a training takes, by arithmetic, on several numbers of GPUs."""

    gpus: list[int] = field(default_factory=lambda: [1, 8, 64])
    """Numbers of GPUs."""
    gpu: Literal["h100", "a100", "rtx4090"] = "h100"
    """Which one: its peak and memory by the data sheet (80, 80 and 24 GB)."""
    share_of_peak: float = 0.35
    """Share of the peak that is assumed to be reached."""
    rate: float | None = key(None, ABOVE_ZERO)
    """Records a second that one GPU was measured to train on, in place of the assumption."""
    records: int | None = key(None, AT_LEAST_ONE)
    """Pairs, where the dataset is no table yet."""
    distinct_prompts: int | None = key(None, AT_LEAST_ONE)
    """Different prompts among them; as many as records if not given."""
    effective_batch: int | None = key(None, AT_LEAST_ONE)
    """Records a step for every number of GPUs, by another gradient_accumulation_steps; if not given, more GPUs make it larger."""


def run(config: CONFIG) -> int:
    """Print the page."""
    from diffalign.methods.checks import check

    if not 0 < config.share_of_peak <= 1 or not config.gpus or min(config.gpus) < 1:
        raise ConfigError("`share_of_peak` is a share in (0, 1], and `gpus` are numbers from 1 on")
    check_ranges(config)
    training = plain(config, TrainConfig)
    if config.records is not None and not (training.dataset_name or training.generate or training.prompts):
        training = replace(training, dataset_name=f"{config.records} records")  # of a dataset that is not there yet
    if training.generate or training.prompts:
        raise ConfigError("`plan` is for a training on a dataset; `diffalign train --dry_run` says what rounds and turns cost")
    recipe = check(replace(training, overwrite_output_dir=True), installed=False)
    if recipe.kind != "image" and recipe.kind is not None:
        raise ConfigError("`plan` counts image models; `diffalign train --dry_run` has the memory of others")
    import torch

    from diffalign.methods.builders import dry_run, meta_model
    from diffalign.methods.builders.plan import DEVICES, Plan, report

    view = dry_run.opened(training, recipe)
    if view is None and config.records is None:
        raise ConfigError(f"{training.dataset_name}: no table yet; give --records, or import it with `diffalign data import`")
    rows = config.records or 0
    counts = dry_run.Counts.of(view) if view is not None else dry_run.Counts(rows, 2 * rows, config.distinct_prompts or rows)
    outline = meta_model.outline(training, recipe, torch.device("cuda"))
    plan = Plan(counts, DEVICES[config.gpu], config.share_of_peak, config.rate, config.effective_batch)
    print(report(training, recipe, outline, plan, config.gpus))
    return 0
