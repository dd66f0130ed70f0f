# python -m scripts.bench_draw
"""What drawing costs in the online loop, in units of the stock pipeline's own loop: same model, prompts, steps, guidance and batch.

Two ways draw: the pipeline with a callback that keeps the latents, and the rollout whose steps are trained by policy gradients. All three
alternate, and the least processor time of each counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import auto_cli

from diffalign.core.progress import progress
from diffalign.methods.config_file import from_mapping
from diffalign.methods.parts import Parts
from diffalign.train.online.turns import Turns
from diffalign.train.trainer import trainer_for
from scripts.arena import BASE, SCALE, Arena
from scripts.bench_online import METHODS

Draw = Callable[[], object]
STOCK = "stock pipeline"
WAYS = {"pipeline that keeps latents": "dgpo", "rollout that keeps two steps": "flow_grpo"}  # methods of bench_online.py


def parts_of(arena: Arena, way: str, images: int, steps: int) -> Parts:
    """Return the parts of an online run that draws in a way."""
    own = {
        "pretrained_model_name_or_path": arena.model,
        "max_sequence_length": arena.length,
        "prompts": arena.train_prompts[:images],
        "scorers": [{"taste": {"name": arena.taste}}],
        "images_per_prompt": 2,
        "prompts_per_turn": 2,
        "updates_per_turn": 2,
        "num_inference_steps": steps,
        "sample_guidance_scale": SCALE,
        "train_batch_size": 2,
        "output_dir": str(arena.root / "runs" / "draw"),
    }
    return trainer_for(from_mapping({**BASE, **own, **METHODS[WAYS[way]]}, "bench_draw")).parts


def drawing(arena: Arena, parts: Parts, images: int) -> Draw:
    """Return what draws a batch as the run does."""
    turns = parts.turns
    assert isinstance(turns, Turns)  # there are prompts
    bar = progress(total=images, desc="draw", unit="images", hidden=True)
    return lambda: turns.drawer.draw(arena.train_prompts[:images], range(images), 0, bar)


def stock(arena: Arena, parts: Parts, images: int, steps: int) -> Draw:
    """Return what draws a batch with the stock pipeline alone, around the same network with its adapter."""
    pipe, options = parts.backbone.pipeline(), {"num_inference_steps": steps, "guidance_scale": SCALE}
    options |= {} if arena.length is None else {"max_sequence_length": arena.length}

    def draw() -> object:
        generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
        return pipe(arena.train_prompts[:images], generator=generators, **options)

    return draw


def main(images: int = 32, steps: int = 10, repeats: int = 7, model: str = "tiny-sd", root: str = "outputs/bench_draw") -> None:
    """Print what each way costs.

    Args:
        images: Pictures of a call, which are one batch.
        steps: Steps of the sampler.
        repeats: Calls of each; the fastest counts.
        model: tiny-sd or tiny-sd3.
        root: Folder of the runs' logs.
    """
    torch.set_flush_denormal(True)
    arena = Arena(Path(root), f"assets/{model}")
    parts = {way: parts_of(arena, way, images, steps) for way in WAYS}
    ways = {STOCK: stock(arena, next(iter(parts.values())), images, steps)}
    ways |= {way: drawing(arena, own, images) for way, own in parts.items()}
    least = dict.fromkeys(ways, math.inf)
    for own in parts.values():
        own.backbone.network.eval()
    for _ in range(repeats):
        for way, draw in ways.items():
            start = time.process_time()
            with torch.no_grad():
                draw()
            least[way] = min(least[way], time.process_time() - start)
    for way, seconds in least.items():
        print(f"{way}: {seconds:.2f} s for {images} images of {steps} steps, {seconds / least[STOCK]:.3f} of the stock pipeline")


if __name__ == "__main__":
    auto_cli(main)
