"""What `diffalign pairs` does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

from diffalign.backbones.folders import check_folder, is_language_model, resolve
from diffalign.data.readers.base import read
from diffalign.data.readers.prompts import PROMPTS
from diffalign.data.table import is_table, read_table
from diffalign.errors import ConfigError
from diffalign.options_pairs import GenerateConfig
from diffalign.promptsets import prompts_of


def generate(config: GenerateConfig) -> int:
    """Write the table and say what it holds."""
    prompts = asked(config)
    name = config.pretrained_model_name_or_path
    if is_language_model(name):
        raise ConfigError(f"{name}: a language model; `diffalign pairs generate` draws images")
    if not (Path(name) / "run.json").is_file():
        check_folder(resolve(name), config.variant)
    from diffalign.generate import generate  # torch and diffusers take seconds to import

    table = generate(config, prompts)
    if table is not None:
        facts = table.manifest
        print(f"{facts['rows']} prompts with {config.images_per_prompt} images each, {facts['rejected_rows']} left out -> {table.path}")
        for scorer in facts["scorers"]:
            span = facts["scores"].get(scorer["name"], {"min": math.nan, "max": math.nan})
            print(f"  {scorer['name']}: {span['min']:g} to {span['max']:g} ({scorer['scale']})")
    return 0


def asked(config: GenerateConfig) -> list[str]:
    """Return the prompts to draw, each once. Raises ConfigError where both ways of naming them are used."""
    if config.prompts and config.dataset_name is not None:
        raise ConfigError("`prompts` and `dataset_name` both name prompts; leave one of them out")
    if config.max_prompts is not None and config.max_prompts < 1:
        raise ConfigError(f"`max_prompts` is {config.max_prompts}; expected at least one prompt")
    found: Iterable[str] = prompts_of(config.prompts)
    if config.dataset_name is not None and is_table(config.dataset_name):
        found = read_table(config.dataset_name).column("prompt")
    elif config.dataset_name is not None:
        found = (record.prompt for record in read(PROMPTS, config.dataset_name, split=config.dataset_split_name))
    return list(itertools.islice(_once(found), config.max_prompts))


def _once(values: Iterable[str]) -> Iterable[str]:
    """Yield every value the first time it comes."""
    seen: set[str] = set()
    for value in values:
        if value not in seen:
            seen.add(value)
            yield value
