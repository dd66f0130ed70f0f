"""What a dry run says of online training. Nothing is loaded or written."""

from __future__ import annotations

from diffalign.core.specs import single
from diffalign.infer.kinds.table import KINDS
from diffalign.methods.config import TrainConfig
from diffalign.methods.online import steps_without_noise
from diffalign.methods.recipe import Recipe
from diffalign.models.diffusion.rollout_plan import Branch
from diffalign.train.online.loop import candidates, noisy_of, passes, prompts_of, writes
from diffalign.train.online.trees import trained_nodes


def outlook(config: TrainConfig, recipe: Recipe) -> str:
    """Return what a turn draws and costs, and the memory of a step."""
    prompts, drawn = prompts_of(config, recipe), config.prompts_per_turn * config.images_per_prompt
    turns = -(-config.max_train_steps // config.updates_per_turn)
    guided = 2 if config.sample_guidance_scale > 1.0 else 1
    noisy, trained = noisy_of(config, recipe), passes(config) * config.prompts_per_turn * candidates(config, recipe)
    calls = drawn * config.num_inference_steps * guided
    if isinstance(noisy, Branch):
        plan = noisy.plan(0, config.num_inference_steps, steps_without_noise(config))
        nodes = trained_nodes(noisy, plan)
        calls = config.prompts_per_turn * plan.evaluations * guided
        trained = passes(config) // len(nodes) * config.prompts_per_turn * sum(nodes)
    judges = ", ".join(single("scorer", spec)[0] for spec in config.scorers)
    again = ", and again for the reference" if recipe.compares else ""
    written = writes(config, recipe)
    lines = [
        f"{turns} turns of {config.prompts_per_turn} of {len(prompts)} prompts x {config.images_per_prompt} images, judged by {judges}",
        f"a turn: {drawn:,} images of {config.num_inference_steps} steps, {calls:,} passes of the network"
        f"{f' {config.image_model}, which draws what is written,' if written else ''} for them; then "
        f"{config.updates_per_turn} updates on {trained:,} {'texts' if written else 'latents'}, with gradient{again}",
        f"the run: {turns * drawn:,} images, {turns * calls:,} passes to draw them",
    ]
    return "\n".join([*lines, "", KINDS["text" if written else "image"].outlook(config, recipe, candidates(config, recipe))])
