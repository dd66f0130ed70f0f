"""Online training in one call: what is checked before a model loads, and the parts of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from diffalign.core.errors import ConfigError
from diffalign.core.processes import process_state
from diffalign.core.runs import scorers_of
from diffalign.core.specs import bind, single
from diffalign.core.types import Likelihood
from diffalign.data.cache import fingerprint
from diffalign.data.prompts import prompts_to_draw
from diffalign.infer.draw_votes import open_painters
from diffalign.infer.text.rewriter import Rewriter
from diffalign.methods.builders import image, text
from diffalign.methods.checks import check_text
from diffalign.methods.config import TrainConfig
from diffalign.methods.online import steps_without_noise
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models.diffusion.rollout import StepLikelihood
from diffalign.models.diffusion.rollout_plan import ROLLOUTS, Branch, Noisy
from diffalign.models.reference import Start
from diffalign.rewards.table import check_scorers
from diffalign.train.online.drawing import Drawer, Finish, PipelineDrawer, RolloutDrawer, WriterDrawer
from diffalign.train.online.judges import Judges
from diffalign.train.online.pairs import TurnImages, TurnTexts
from diffalign.train.online.policies import Policies
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
    """Return the parts of an online run, its models and its scorers loaded."""
    build = _texts if writes(config, recipe) else _images
    judges = Judges(config.scorers, str(device))
    made = build(config, recipe, prompts, judges, device)
    ranked_by = judges.names if len(judges.names) == 1 else []
    about = scorers_of({"scorers": judges.about(), "generated": {"rank_by": ranked_by[0] if ranked_by else None}})
    table = fingerprint({"prompts": list(prompts), "scorers": config.scorers})
    return replace(made, table=table, facts={**made.facts, "scorers": about})


def _images(config: TrainConfig, recipe: Recipe, prompts: Sequence[str], judges: Judges, device: torch.device) -> Parts:
    """Return the parts of a run that trains what draws."""
    model = image.backbone(config, recipe, device)
    image.equip(config, recipe, model)
    start = image.start(config, recipe, model)
    compared = image.reference(config, recipe, model, device)
    pairs = TurnImages(config.prompts_per_turn, passes(config), config.seed, config.resolution or model.resolution, model.encode_prompt)
    noisy = noisy_of(config, recipe)
    likelihood: Likelihood = image.with_neighbours(recipe, image.likelihood_of(config, recipe, model))
    finish = Finish(Start.of(model.denoiser), config.num_inference_steps - config.start_model_steps) if config.start_model_steps else None
    drawer: Drawer = PipelineDrawer(config, model, finish)
    if noisy is not None:
        plan = noisy.plan(0, config.num_inference_steps, steps_without_noise(config))
        likelihood = StepLikelihood(model.path, model.predict, plan.kind, plan.level, config.sample_guidance_scale - 1.0)
        drawer = RolloutDrawer(config, model, noisy, likelihood, finish)
    branch = noisy if isinstance(noisy, Branch) else None
    policies = Policies.of(config, compared)
    turns = Turns(config, recipe, prompts, model, drawer, judges, likelihood, pairs, policies, branch=branch, replays=noisy is not None)
    groups, live = image.parameter_groups(config, model), config.cache == "off"
    return Parts("image", recipe, model, likelihood, compared, pairs, "", facts=start, turns=turns, groups=groups, live=live)


def _texts(config: TrainConfig, recipe: Recipe, prompts: Sequence[str], judges: Judges, device: torch.device) -> Parts:
    """Return the parts of a run that trains a language model by the pictures of what it writes."""
    check_text(config, recipe)
    (painter,) = open_painters(str(config.image_model), device=str(device))
    model = text.backbone(config, device, full=recipe.tuning == "full")
    text.equip(config, recipe, model)
    writer = Rewriter(model.network, model.tokenizer)
    pairs = TurnTexts(config.prompts_per_turn, passes(config), config.seed, writer.prompt_ids)
    longest = max(len(writer.prompt_ids(prompt)) for prompt in prompts) + config.max_completion_length
    likelihood = text.likelihood(config, recipe, model, longest)
    drawer, replays = WriterDrawer(config, writer, painter), "old" in recipe.facts.tokens
    chat = writer.conversational
    compared = text.reference(config, recipe, model, device)
    policies = Policies.of(config, compared)
    turns = Turns(config, recipe, prompts, model, drawer, judges, likelihood, pairs, policies, replays=replays, conversational=chat)
    return Parts("text", recipe, model, likelihood, compared, pairs, "", facts=text.facts(config, chat), turns=turns)


def writes(config: TrainConfig, recipe: Recipe) -> bool:
    """Return whether a language model is trained; of a hub id, of which nothing else is known, `image_model` says so."""
    return config.image_model is not None if recipe.kind is None else recipe.kind == "text"


def noisy_of(config: TrainConfig, recipe: Recipe) -> Noisy | Branch | None:
    """Return the sampler whose steps are trained, None for methods that train on clean latents.

    Raises ConfigError where the objective and `rollout` do not go together, or the passes of a turn do not train on each step equally
    often.
    """
    if writes(config, recipe) or (config.rollout is None and not recipe.facts.steps):
        return None
    if not (recipe.facts.steps or recipe.facts.of_steps):
        raise ConfigError(f"`rollout` keeps steps of a sampler, which objective `{recipe.objective.name}` does not read; leave it out")
    if config.trajectory is not None:
        raise ConfigError(
            "`trajectory` says where pictures are noised anew, and steps of a sampler are trained where they were; leave it out"
        )
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


def candidates(config: TrainConfig, recipe: Recipe) -> int:
    """Return how many pictures of a prompt are trained on together."""
    names = {single("transform", spec)[0] for spec in recipe.transforms}
    return 2 if names & {"pairs", "orient"} else config.images_per_prompt
