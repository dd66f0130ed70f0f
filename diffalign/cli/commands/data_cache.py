"""`diffalign data cache`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from diffalign.cli.invocation import has_flag
from diffalign.cli.parser import plain
from diffalign.core.errors import ConfigError
from diffalign.core.keys import facts_of
from diffalign.core.specs import Spec
from diffalign.methods.config import TrainConfig

ABOUT = "compute what training would compute first"
OWN = "own"  # what a bare --trajectory means
HELP = """--trajectory alone keeps points of the method's own trajectory, computed with the reference as driver: as many for each record
as --trajectory_cache says, four if it says nothing; with a spec it names another trajectory, as in `diffalign train`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG(TrainConfig):
    """Compute latents, prompt embeddings and points of a trajectory before training."""

    trajectory: Spec | None = field(default=None, metadata={"facts": facts_of(TrainConfig)["trajectory"], "bare": OWN})
    """Keep points of the trajectory: of the method's own, or of this one (see `diffalign train --help`)."""


def run(config: CONFIG) -> int:
    """Fill the caches that `diffalign train` with the same settings would fill, and say what was done."""
    from diffalign.data.table import is_table
    from diffalign.methods.builders.data import open_dataset
    from diffalign.methods.checks import check

    if not is_table(config.dataset_name):
        raise ConfigError(f"{config.dataset_name}: not a table, and caches lie beside one; make it with `diffalign data import`")
    training = plain(replace(config, trajectory=None) if config.trajectory == OWN else config, TrainConfig)
    if has_flag("trajectory") and not config.trajectory_cache:  # that of a config file is what it will be trained with
        training = replace(training, trajectory_cache=4)
    if training.cache == "auto":  # who fills a cache wants one
        training = replace(training, cache="disk")
    recipe = check(replace(training, overwrite_output_dir=True))  # nothing is written to output_dir
    view = open_dataset(training, recipe)
    import torch

    from diffalign.infer.kinds.table import KINDS

    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start, kind = time.perf_counter(), recipe.kind or view.table.manifest["kind"]
    KINDS[kind].build(training, recipe, view, device)
    points = training.trajectory_cache
    kept = f", {points} points of the trajectory for each" if points else ""
    what = "the reference's log-probabilities" if kind == "text" else "latents and prompts"
    print(f"{what} of {len(view)} records{kept}: {time.perf_counter() - start:.1f} s")
    print("train with the same settings" + (f" and --trajectory_cache {points}" if points else ""))
    return 0
