"""The prompts that `pairs generate`, and the rounds of a training, draw to. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable

from diffalign.data.readers.base import read
from diffalign.data.readers.prompts import PROMPTS
from diffalign.data.table import is_table, read_table
from diffalign.errors import ConfigError
from diffalign.options_pairs import GenerateConfig
from diffalign.promptsets import prompts_of, subset


def asked(config: GenerateConfig) -> list[str]:
    """Return the prompts to draw, each once. Raises ConfigError where both ways of naming them are used."""
    if config.prompts and config.dataset_name is not None:
        raise ConfigError("`prompts` and `dataset_name` both name prompts; leave one of them out")
    found: Iterable[str] = prompts_of(config.prompts)
    if config.dataset_name is not None and is_table(config.dataset_name):
        found = read_table(config.dataset_name).column("prompt")
    elif config.dataset_name is not None:
        found = (record.prompt for record in read(PROMPTS, config.dataset_name, split=config.dataset_split_name))
    return subset(list(dict.fromkeys(found)), config.max_prompts, config.seed)
