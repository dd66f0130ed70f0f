"""Online training in one call: what is checked before a model loads, the parts of the run, and what a dry run says."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffalign.core.errors import ConfigError
from diffalign.core.processes import process_state
from diffalign.core.runs import scorers_of
from diffalign.core.specs import bind, single
from diffalign.core.types import Likelihood
from diffalign.data.cache import fingerprint
from diffalign.data.prompts import prompts_to_draw
from diffalign.infer.kinds import image as kind
from diffalign.methods.builders import image
from diffalign.methods.config import TrainConfig
from diffalign.methods.online import steps_without_noise
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models.diffusion.rollout import StepLikelihood
from diffalign.models.diffusion.rollout_plan import ROLLOUTS, Branch, Noisy
from diffalign.models.reference import Start
from diffalign.rewards.table import check_scorers
from diffalign.train.online.drawing import Drawer, Finish, PipelineDrawer, RolloutDrawer
from diffalign.train.online.judges import Judges
from diffalign.train.online.pairs import TurnPairs
from diffalign.train.online.policies import Policies
from diffalign.train.online.trees import trained_nodes
from diffalign.train.online.turns import Turns


def prompts_of(config: TrainConfig, recipe: Recipe) -> list[str]:
    """Return the prompts to draw. Raises ConfigError for too few of them, and for scorers and rollouts that are none."""
    check_scorers(config.scorers)
    noisy_of(config, recipe)
    prompts = prompts_to_draw(config.prompts)
    if len(prompts) < config.prompts_per_turn:
        raise ConfigError(f"`prompts_per_turn` is {config.prompts_per_turn}; expected at most {len(prompts)}, the different `prompts`")
    return prompts


def parts(config: TrainConfig, recipe: Recipe, prompts: Sequence[str], device: torch.device) -> Parts:
    """Return the parts of an online run, its model and its scorers loaded."""
    model = image.backbone(config, recipe, device)
    image.equip(config, recipe, model)
    start = image.start(config, recipe, model)
    compared = image.reference(config, recipe, model, device)
    judges = Judges(config.scorers, str(device))
    pairs = TurnPairs(config.prompts_per_turn, passes(config), config.seed, config.resolution or model.resolution, model.encode_prompt)
    noisy = noisy_of(config, recipe)
    likelihood: Likelihood = image.with_neighbours(recipe, image.likelihood_of(config, recipe, model))
    finish = Finish(Start.of(model.denoiser), config.num_inference_steps - config.start_model_steps) if config.start_model_steps else None
    drawer: Drawer = PipelineDrawer(config, model, finish)
    if noisy is not None:
        plan = noisy.plan(0, config.num_inference_steps, steps_without_noise(config))
        likelihood = StepLikelihood(model.path, model.predict, plan.kind, plan.level, config.sample_guidance_scale - 1.0)
        drawer = RolloutDrawer(config, model, noisy, likelihood, finish)
    branch = noisy if isinstance(noisy, Branch) else None
    turns = Turns(config, recipe, prompts, model, drawer, judges, likelihood, pairs, Policies.of(config, compared), branch)
    ranked_by = judges.names if len(judges.names) == 1 else []
    about = scorers_of({"scorers": judges.about(), "generated": {"rank_by": ranked_by[0] if ranked_by else None}})
    table = fingerprint({"prompts": list(prompts), "scorers": config.scorers})
    return Parts("image", recipe, model, likelihood, compared, pairs, table, facts=start | {"scorers": about}, turns=turns)


def noisy_of(config: TrainConfig, recipe: Recipe) -> Noisy | Branch | None:
    """Return the sampler whose steps are trained, None for methods that train on clean latents.

    Raises ConfigError where the objective and `rollout` do not go together, or the passes of a turn do not train on each step equally
    often.
    """
    if config.rollout is None and not recipe.facts.steps:
        return None
    if not (recipe.facts.steps or recipe.facts.of_steps):
        raise ConfigError(f"`rollout` keeps steps of a sampler, which objective `{recipe.objective.name}` does not read; leave it out")
    noisy: Noisy | Branch = bind("rollout", ROLLOUTS, config.rollout or "cps")()
    if isinstance(noisy, Branch):
        _check_tree(config, recipe, noisy)
    plan = noisy.plan(0, config.num_inference_steps, steps_without_noise(config))
    if plan.kind == "cps" and recipe.objective.constants.get("trust") == "guard":
        raise ConfigError(
            "`trust: guard` corrects the ratio of densities, and `rollout: cps` has squares without variance; choose flow_sde or ddim"
        )
    kept = len(plan.kept)
    if passes(config) % kept:
        raise ConfigError(
            f"`rollout` keeps {kept} steps, and the updates of a turn go through its prompts {passes(config)} times, with one step each; "
            f"expected a multiple of {kept}: raise `updates_per_turn`, or keep fewer steps (`size`, or `depth_pruning`, in `rollout`)"
        )
    return noisy


def _check_tree(config: TrainConfig, recipe: Recipe, branch: Branch) -> None:
    """Raise ConfigError where the keys of a run do not go with its trees."""
    branch.check(config.num_inference_steps, config.images_per_prompt, steps_without_noise(config))
    if not recipe.facts.steps or candidates(config, recipe) != config.images_per_prompt:
        raise ConfigError(
            "`rollout: branch` trains every step of a tree with an advantage of its own; set `objective` to clipped_ratio, and "
            "`transforms` to [{list_of: {score: advantage}}]"
        )
    if config.advantages:
        raise ConfigError(
            "`advantages` compares the pictures of a prompt, and `rollout: branch` the nodes of a depth; leave one of them out"
        )
    if config.prompts_per_turn % config.train_batch_size:
        raise ConfigError(
            f"`prompts_per_turn` is {config.prompts_per_turn}; expected a multiple of `train_batch_size`, {config.train_batch_size}, with "
            "`rollout: branch`: the trees of a batch take the same step"
        )


def passes(config: TrainConfig) -> int:
    """Return how often a turn trains on each of its prompts."""
    batch = config.train_batch_size * config.gradient_accumulation_steps * process_state().num_processes
    return config.updates_per_turn * batch // config.prompts_per_turn


def outlook(config: TrainConfig, recipe: Recipe) -> str:
    """Return what a turn draws and costs, and the memory of a step. Loads and writes nothing."""
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
    lines = [
        f"{turns} turns of {config.prompts_per_turn} of {len(prompts)} prompts x {config.images_per_prompt} images, judged by {judges}",
        f"a turn: {drawn:,} images of {config.num_inference_steps} steps, {calls:,} passes of the network for them; then "
        f"{config.updates_per_turn} updates on {trained:,} latents, with gradient{again}",
        f"the run: {turns * drawn:,} images, {turns * calls:,} passes to draw them",
    ]
    return "\n".join([*lines, "", kind.outlook(config, recipe, candidates(config, recipe))])


def candidates(config: TrainConfig, recipe: Recipe) -> int:
    """Return how many pictures of a prompt are trained on together."""
    names = {single("transform", spec)[0] for spec in recipe.transforms}
    return 2 if names & {"pairs", "orient"} else config.images_per_prompt
