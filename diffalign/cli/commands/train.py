"""`diffalign train`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from diffalign.cli.parser import plain
from diffalign.core.runs import Run
from diffalign.methods.beta_convention import BetaConvention, with_beta_of
from diffalign.methods.checks import check_keys
from diffalign.methods.config import TrainConfig

ABOUT = "fine-tune a model on preferences"
HELP = """examples:
  diffalign train --dataset_name votes --output_dir outputs/mine                          the embedded model, with what --help says
  diffalign train --config configs/diffusion_dpo_sd15.yaml --dataset_name votes --dry_run  what a recipe would train, and its memory
  diffalign train --prompts partiprompts --scorers pickscore --output_dir outputs/online   draws, judges and learns in turns, without data
  diffalign train --dataset_name chats.jsonl --pretrained_model_name_or_path MODEL --method dpo --beta 0.1
  accelerate launch -m diffalign.cli train ...                                             on several GPUs
Flags of diffusers' DPO scripts and of `trl dpo` are taken too; the log says what each is here.

beta: the score of an image is -1/2 times the mean squared denoising error over its latent, and beta multiplies differences of
scores, as in the Diffusion-DPO release. LARGER beta = the model stays CLOSER to where it started. 2000 to 5000 is usual.
  diffusers train_diffusion_dpo.py (SD1.5)   --beta_dpo 2500 there = 5000 here
  diffusers train_diffusion_dpo_sdxl.py      --beta_dpo 5000 there = 5000 here
  SimpleTuner, half a sum over the latent    beta there * C * H * W = beta here (SD1.5 at 512 px: * 16384)
  a sum over the latent without one half     beta there * 2 * C * H * W = beta here
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG(TrainConfig):
    """Fine-tune a model on preferences."""

    dry_run: bool = False
    """Say what would be trained and how much memory it takes; load and write nothing."""
    beta_convention: BetaConvention = "diffalign"
    """Whose beta --beta is: that of diffusers' script for the model, of SimpleTuner (sum), flow_grpo or trl; converted, and logged."""


def run(config: CONFIG) -> int:
    """Train and say where the result lies; or only say what would be trained."""
    training = with_beta_of(plain(config, TrainConfig), config.beta_convention)
    if config.dry_run:
        if int(os.environ.get("RANK", "0")) == 0:
            print(_outlook(training))
        return 0
    if training.generate:
        check_keys(training)
        from diffalign.train import rounds  # what draws takes seconds to import

        folder = rounds.train(training)
    else:
        from diffalign.train.align import train

        folder = train(training)
    if int(os.environ.get("RANK", "0")):  # of a launch, the first process says where the result is
        return 0
    if (run := Run.open(folder, expects=("image", "text", "reward"))).kind == "reward":
        print(f"done: {folder}; use it as {run.scorer}")
    else:
        print(f"done: {folder}; use it with diffalign.load({str(folder)!r})")
    return 0


def _outlook(config: TrainConfig) -> str:
    """Return what a run would train, without its output folder being looked at."""
    from diffalign.methods.checks import check
    from diffalign.methods.packages import missing_packages

    recipe = check(replace(config, overwrite_output_dir=True), installed=False)
    warnings = "".join(f"\nwarning: {sentence}" for sentence in missing_packages(config))
    if config.generate:
        from diffalign.train import rounds

        return rounds.outlook(config, recipe) + warnings
    if config.prompts:
        from diffalign.train.online.outlook import outlook

        return outlook(config, recipe) + warnings
    from diffalign.infer.kinds.table import KINDS

    return KINDS[recipe.kind or "image"].outlook(config, recipe, 2) + warnings
