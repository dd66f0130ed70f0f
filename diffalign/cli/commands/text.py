"""What subcommands do for language models alone."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from diffalign.cli.options.options import ChesConfig
from diffalign.core.errors import ConfigError
from diffalign.data.table import is_table, write_table
from diffalign.evaluate.options import EvalConfig
from diffalign.evaluate.texts import compare_texts
from diffalign.methods.build import text as textbuild
from diffalign.methods.build.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.models.text.ches import scored

TEXTS = ("output_dir", "prompts", "dataset_name", "dataset_split_name", "reader", "device", "seed")  # what `eval` takes of texts


def compared(config: EvalConfig, prompts: list[str]) -> dict[str, Any]:
    """Return what a language model's run does beside its base. Raises ConfigError for what only pictures have."""
    plain = EvalConfig(output_dir=config.output_dir)
    for option in fields(config):
        if option.name not in TEXTS and getattr(config, option.name) != getattr(plain, option.name):
            raise ConfigError(f"`{option.name}` is for image models, and {config.output_dir} is the run of a language model")
    return compare_texts(
        config.output_dir,
        prompts,
        dataset_name=config.dataset_name,
        dataset_split_name=config.dataset_split_name,
        reader=config.reader,
        device=config.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        seed=config.seed,
    )


def data_ches(config: ChesConfig) -> int:
    """Write a table of pairs with the scores `ches` and `ln_ches`, and say where it lies."""
    if not is_table(config.dataset_name):
        raise ConfigError(f"{config.dataset_name}: not a table; make one with `diffalign data import`")
    if Path(config.output_dir).resolve() == Path(config.dataset_name).resolve():
        raise ConfigError(f"`output_dir` is {config.output_dir}, the table itself; expected the folder of a new one")
    told = TrainConfig(**asdict(config), method="dpo", transforms=["pairs", "orient"]).check()
    data = textbuild.pairs(told, open_dataset(told, kind="text"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = textbuild.backbone(told, device)
    table = write_table(Path(config.output_dir), scored(data, model.read, model.network, device))
    known = table.manifest["scores"]["ln_ches"]
    print(f"{len(table)} pairs with ches and ln_ches ({known['min']:.3g} to {known['max']:.3g}): {table.path}")
    print("train on those least likely to be displaced with --transforms [orient, {lowest: {score: ln_ches, share: 0.5}}]")
    return 0
