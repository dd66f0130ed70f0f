"""What `diffalign pairs` does."""

from __future__ import annotations

import math
from pathlib import Path

from diffalign.asked import asked
from diffalign.backbones.folders import check_folder, is_language_model, resolve
from diffalign.errors import ConfigError
from diffalign.options_pairs import GenerateConfig


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
