# python -m scripts.text_encoder
"""Diffusion-DPO on tiny-sd with and without its text encoder trained: the same pairs, steps, seeds and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from diffalign.core.runs import Run as Finished
from diffalign.data.world.judge import mean_adherence
from diffalign.evaluate.win_rate import win_rate
from diffalign.infer.load import load
from diffalign.infer.sample import draw
from diffalign.models.backbones.table import load_pipeline
from diffalign.train.trainer import trainer_for
from scripts.arena import MODEL, SCALE, Arena, Run, scores

STEPS = 120
DPO = {"beta": 500.0, "learning_rate": 1e-3}  # as compare_methods.py found it
WAYS: dict[str, dict[str, Any]] = {
    "the denoiser alone": DPO,
    "with the text encoder": {**DPO, "train_text_encoder": True},
}


def main(root: Path = Path("outputs/text_encoder"), prompts: int = 200, num_inference_steps: int = 25, seed: int = 0) -> None:
    """Train what `root` does not have yet, draw the held-out prompts with each model, and print the table."""
    arena = Arena(root)
    held_out = arena.eval_prompts[:prompts]

    def judged(pipe: Any) -> tuple[list[float], float]:
        images = draw(pipe, held_out, range(len(held_out)), guidance_scale=SCALE, num_inference_steps=num_inference_steps)
        return scores(images)["taste"], mean_adherence(held_out, images)

    before = judged(load_pipeline(MODEL))
    print(f"base: adherence {before[1]:.3f}", flush=True)
    alone: list[float] = []
    for way, options in WAYS.items():
        folder = root / "runs" / Run("off", "diffusion_dpo", options, STEPS, seed).key
        if not Finished.is_in(folder):
            trainer_for(arena._config(Run("off", "diffusion_dpo", options, STEPS, seed))).fit()
        taste, adherence = judged(load(folder))
        alone = alone or taste
        rivals = {"the base": before[0], **({"the denoiser alone": alone} if taste is not alone else {})}
        for rival, other in rivals.items():
            won = win_rate(other, taste, held_out)
            print(f"{way}, over {rival}: {won.rate:.3f} ({won.low:.3f} to {won.high:.3f}), adherence {adherence:.3f}", flush=True)
    print(f"{len(held_out)} prompts, {num_inference_steps} solver steps, {STEPS} training steps, seed {seed}")


if __name__ == "__main__":
    auto_cli(main)
