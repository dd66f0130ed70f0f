"""`diffalign pairs generate`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run
from diffalign.infer.options import GenerateConfig
from diffalign.rewards.names import check_scorer_names

CONFIG = GenerateConfig
ABOUT = "draw, score and rank a model's own images"
HELP = """The table has every image with its scores and its rank: `diffalign train --method rank_dpo` learns from the whole rankings,
other methods from their pairs.
examples:
  diffalign pairs generate --prompts prompts.txt --scorers '{taste: {name: high}}' --output_dir ranked
  diffalign pairs generate --pretrained_model_name_or_path outputs/mine --dataset_name votes --scorers adherence --output_dir ranked
  diffalign pairs generate --rewriter assets/tiny-lm --prompts "a star" --scorers '{taste: {name: high}}' --output_dir rewrites
                                                                   (texts of a prompt writer, ranked by their pictures)
  accelerate launch -m diffalign.cli pairs generate ...            (every process draws and scores its share)
"""


def run(config: GenerateConfig) -> int:
    """Write the table and say what it holds."""
    check_scorer_names(config.scorers)
    from diffalign.models.backbones.folders import check_folder, is_language_model, resolve, unpack

    name = config.pretrained_model_name_or_path
    unpack(name, config.config_folder)
    prompts, inputs = _drawn_from(config)
    if is_language_model(name):
        raise ConfigError(f"{name}: a language model; `diffalign pairs generate` draws images")
    if not Run.is_in(name):
        check_folder(resolve(name), config.variant)
    from diffalign.infer.generate_pairs import generate  # torch and diffusers take seconds to import

    table = generate(config, prompts, inputs)
    if table is not None:
        facts = table.manifest
        what = "images" if config.rewriter is None else "rewrites"
        print(f"{facts['rows']} prompts with {config.images_per_prompt} {what} each, {facts['rejected_rows']} left out -> {table.path}")
        print("\n".join(_lines(facts)))
    return 0


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each scorer, and one of what became of a judge's questions."""
    from diffalign.rewards.shards import audited

    for scorer in facts["scorers"]:
        span = facts["scores"].get(scorer["name"], {"min": math.nan, "max": math.nan})
        yield f"  {scorer['name']}: {span['min']:g} to {span['max']:g} ({scorer['scale']})"
        if scorer.get("audit"):
            yield f"    {audited(scorer['audit'])}"


def _drawn_from(config: GenerateConfig) -> tuple[list[str], list[bytes]]:
    """Return the prompts, and of an edit model the input picture of each."""
    from diffalign.data.prompts import edits_to_draw, prompts_to_draw
    from diffalign.methods.edits import draws_edits
    from diffalign.models.backbones.folders import is_local, resolve

    name, dataset, layout = config.pretrained_model_name_or_path, config.dataset_name, None
    if not is_local(resolve(name)):
        from diffalign.models.backbones.table import model_index

        layout = model_index(name, config.revision)[1]
    if draws_edits(name, dataset, layout):
        return edits_to_draw(dataset, config.max_prompts, config.seed)
    split, column = config.dataset_split_name, config.caption_column
    return prompts_to_draw(config.prompts, dataset, split, column=column, limit=config.max_prompts, seed=config.seed), []
