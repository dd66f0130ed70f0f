"""What `diffalign pairs` does."""

from __future__ import annotations

import math
from pathlib import Path

from diffalign.core.errors import ConfigError
from diffalign.data.prompts import prompts_to_draw
from diffalign.infer.options import GenerateConfig
from diffalign.models.backbones.folders import check_folder, is_language_model, resolve


def generate(config: GenerateConfig) -> int:
    """Write the table and say what it holds."""
    prompts = prompts_to_draw(config.prompts, config.dataset_name, config.dataset_split_name, most=config.max_prompts, seed=config.seed)
    name = config.pretrained_model_name_or_path
    if is_language_model(name):
        raise ConfigError(f"{name}: a language model; `diffalign pairs generate` draws images")
    if not (Path(name) / "run.json").is_file():
        check_folder(resolve(name), config.variant)
    from diffalign.infer.generate_pairs import generate  # torch and diffusers take seconds to import

    table = generate(config, prompts)
    if table is not None:
        facts = table.manifest
        print(f"{facts['rows']} prompts with {config.images_per_prompt} images each, {facts['rejected_rows']} left out -> {table.path}")
        for scorer in facts["scorers"]:
            span = facts["scores"].get(scorer["name"], {"min": math.nan, "max": math.nan})
            print(f"  {scorer['name']}: {span['min']:g} to {span['max']:g} ({scorer['scale']})")
    return 0
