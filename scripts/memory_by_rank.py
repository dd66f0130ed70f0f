# python -m scripts.memory_by_rank 8
"""Memory of each process where the recipes for eight GPUs spread their weights over so many, by the dry run's arithmetic; in GiB."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from diffalign.methods.builders.dry_run import table
from diffalign.methods.builders.memory_by_rank import memory_by_rank
from diffalign.methods.config_file import load_yaml
from diffalign.methods.recipe import recipe_of
from scripts.model_memory import published_outline

# By recipe: the family and model of CONFIGS, and the latent of a picture of 1024 by 1024 pixels.
RECIPES = {
    "diffusion_dpo_sdxl_fsdp2": ("sdxl", "SDXL", (4, 128, 128)),
    "diffusion_dpo_flux_fsdp2": ("flux", "Flux-dev", (16, 128, 128)),
    "diffusion_dpo_qwen_image_lora_fsdp2": ("qwen_image", "Qwen-Image", (16, 128, 128)),
}
KEYS = ("train_method", "train_batch_size", "mixed_precision", "gradient_checkpointing", "optimizer", "rank", "max_sequence_length")


def main(processes: int = 8) -> None:
    """Print a table for each recipe."""
    with tempfile.TemporaryDirectory() as work:
        for recipe, (family, model, latent) in RECIPES.items():
            written: dict[str, Any] = {**load_yaml(Path("configs", f"{recipe}.yaml"))}
            options = {key: written[key] for key in KEYS if key in written}
            own, drawn = published_outline(family, model, latent, Path(work), **options)
            print(f"{recipe}, each of {processes} processes")
            print("\n".join(table(memory_by_rank(own, recipe_of(own), drawn, processes))), end="\n\n")


if __name__ == "__main__":
    auto_cli(main)
