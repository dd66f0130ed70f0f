"""The checks of a training configuration, once and before any weight loads: keys, then the model's folder, then the parts together.

`check` is the only door: it returns what the config means, a `Recipe`, which is handed on. It writes and removes nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError, check_name, did_you_mean
from diffalign.core.keys import Kind, changed, check_ranges, facts_of, require
from diffalign.core.runs import Run
from diffalign.core.specs import bind, single
from diffalign.core.values import check_types
from diffalign.data.transforms import TRANSFORMS
from diffalign.methods import METHODS
from diffalign.methods.anchoring import check_anchor
from diffalign.methods.conditioning import check_controlnet, check_controls
from diffalign.methods.config import SCHEDULES, TrainConfig
from diffalign.methods.config_file import config_of
from diffalign.methods.edits import check_edit
from diffalign.methods.half_weights import check_full_bf16
from diffalign.methods.launching import check_launch
from diffalign.methods.lora_keys import check_lora_keys
from diffalign.methods.online import check_flow_rollout, check_online, check_online_texts
from diffalign.methods.packages import check_memory_format, check_switches, missing_packages
from diffalign.methods.rationales import check_rationales
from diffalign.methods.recipe import DRIVERS, Recipe, compares, compares_outputs, part, recipe_of, transforms_of, tuning_of, users_of
from diffalign.models.backbones.folders import (
    LAYOUTS,
    Layout,
    check_folder,
    check_language_model,
    is_language_model,
    is_local,
    lasting,
    owners,
    resolve,
    unpack,
)
from diffalign.models.backbones.mistaken import refuse_vae
from diffalign.models.users.settings import USER_ENCODERS
from diffalign.objectives import OBJECTIVES, RENAMED, Facts, bind_objective
from diffalign.rewards.heads.settings import check_embeds, check_own_loss, settings_of
from diffalign.rewards.names import check_scorer_names

logger = logging.getLogger(__name__)
ERROR_NAMES = ("squared", "pseudo_huber")
EVALUATIONS = {"eval_prompts", "eval_scorers", "eval_reward", "eval_num_inference_steps", "eval_guidance_scale"}  # keys of evaluations
LIKELIHOODS = ("sum", "mean", "ld_dpo", "joint")  # of texts
EARLIER = ("run.json", "train_log.jsonl", "checkpoint-*", "round-*")  # what tells that a folder holds a run


def check(config: TrainConfig, *, installed: bool = True) -> Recipe:
    """Return what `config` means. Raises ConfigError or CheckpointError for the first thing in it that cannot be meant.

    `installed` says whether optional packages that it needs have to be there, as they have for training. Cheap checks come first, so
    that a misspelt key is refused in milliseconds; the last ones may import torch.
    """
    check_keys(config, installed=installed)
    kind = kind_of(config)
    layout = check_model(config, kind)
    check_start(config)
    if int(os.environ.get("RANK", "0")) == 0:
        check_output(config)
    recipe = recipe_of(config, kind)
    check_launch(config, recipe)
    check_full_bf16(config, recipe)
    if kind == "text":
        check_text(config, recipe)
    elif layout is not None:
        check_image(config, recipe, layout)
    else:
        check_sides(parse_buckets(config.aspect_ratio_buckets), "unet")  # of a hub id nothing more is known yet
    if layout is not None and (config.start_from_lora or config.base_lora or config.denoiser):
        from diffalign.methods.builders.meta_model import check_files

        check_files(config, recipe)
    if config.objective or config.trajectory or config.error or config.trajectory_cache or "forward" not in recipe.trajectory_spec:
        from diffalign.methods.builders.trial import check_step  # torch takes seconds to import, so only where something may not fit

        check_step(config, recipe)
    return recipe


def check_keys(config: TrainConfig, *, installed: bool = True) -> None:
    """Check the keys by themselves and against each other; no file is read, and torch is not imported."""
    check_types(config)
    check_name("method", config.method, METHODS)
    require("output_dir", config.output_dir, lambda v: bool(v.strip()), "the folder of the run")
    check_name("lr_scheduler", config.lr_scheduler, SCHEDULES)
    check_ranges(config)
    require(
        "dataset_name",
        config.dataset_name,
        lambda v: bool(v or config.generate or config.prompts),
        "a file, a folder or a hub id; or what to draw, in `prompts` or `generate`",
    )
    _check_objective(config)
    _check_transforms(config)
    _check_users(config)
    if METHODS[config.method].inference == "negative_guidance" and tuning_of(config) == "dora":
        raise ConfigError(f"`{config.method}` gives an adapter that is summed with another, which DoRA's is not; set train_method to lora")
    _check_reward(config)
    check_switches(config)
    if installed and (missing := missing_packages(config)):
        raise ConfigError("; ".join(missing))
    _check_buckets(config)
    check_name("trajectory", next(iter(part(config, "trajectory"))), ("forward", *DRIVERS))
    check_name("error", next(iter(part(config, "error"))), ERROR_NAMES)
    _check_rounds(config)
    check_lora_keys(config, METHODS[config.method], tuning_of(config))
    check_online(config, METHODS[config.method], tuning_of(config))
    check_controlnet(config, METHODS[config.method], tuning_of(config), _names(config))
    check_anchor(config, METHODS[config.method], tuning_of(config))
    _check_evaluations(config)


def kind_of(config: TrainConfig) -> Kind | None:
    """Return which kind of model is trained; None for a hub id, of which nothing is known before its data are open."""
    name = config.pretrained_model_name_or_path
    if METHODS[config.method].inference == "reward":
        return "reward"
    unpack(name, config.config_folder)
    if not is_local(resolve(name)):
        return None
    return "text" if is_language_model(name) else "image"


def check_model(config: TrainConfig, kind: Kind | None) -> Layout | None:
    """Return the layout of a local pipeline folder, None for any other model. Raises CheckpointError for a folder that cannot be used."""
    name = config.pretrained_model_name_or_path
    if kind == "reward":
        check_embeds(name)
    elif kind == "text":
        check_language_model(name, config.variant)
    elif (pipeline := check_folder(resolve(name), config.variant)) is not None:
        if config.pretrained_vae_model_name_or_path is not None:
            refuse_vae(resolve(config.pretrained_vae_model_name_or_path))
        return LAYOUTS[pipeline]
    return None


def check_start(config: TrainConfig) -> None:
    """Raise ConfigError where `start_from` is no finished run, or one whose result is of another model or shape."""
    if config.start_from is None:
        return
    run = Run.open(config.start_from, expects="image")
    if config_of(run).start_from_lora is not None:  # whose adapter is shaped by a file, and not by keys
        raise ConfigError(f"`start_from`: {run.folder} went on from a LoRA file itself; give --start_from_lora {run.folder}")
    vae = config.pretrained_vae_model_name_or_path
    wanted = {
        "base": lasting(config.pretrained_model_name_or_path),
        "revision": config.revision,
        "variant": config.variant,
        "vae": vae and lasting(vae),
        "denoiser": config.denoiser and lasting(config.denoiser),
        "base_lora": config.base_lora,
        "inference": METHODS[config.method].inference,
        **_shape(config, tuning_of(config)),
    }
    there = {name: run.facts.get(name) for name in ("base", "revision", "variant", "vae", "denoiser", "inference")}
    there |= {"base_lora": config_of(run).base_lora, **_shape(config_of(run), run.tuning)}
    for name, value in wanted.items():
        if there.get(name) != value:
            raise ConfigError(f"`start_from`: {run.folder} has {name} {there.get(name)}, and this run {value}; expected the same")


def _shape(config: TrainConfig, tuning: str) -> dict[str, Any]:
    """Return what the shapes of a result's weights depend on."""
    if tuning == "full":
        return {"train_method": "full"}
    alpha, encoders = config.lora_alpha or config.rank, config.train_text_encoder
    shape = {"train_method": tuning, "rank": config.rank, "lora_alpha": alpha, "lora_layers": config.lora_layers}
    return shape | {"train_text_encoder": encoders}


def check_output(config: TrainConfig) -> None:
    """Raise ConfigError rather than train over an earlier run; one that may be replaced is left as it is (see `core.runs.claim`)."""
    folder = Path(config.output_dir)
    there = [path for name in EARLIER for path in sorted(folder.glob(name))]
    if there and not config.resume_from_checkpoint and not config.overwrite_output_dir:
        raise ConfigError(
            f"{there[0]}: `output_dir` holds an earlier run; go on with --resume_from_checkpoint latest, "
            "replace it with --overwrite_output_dir, or choose another folder"
        )


def check_image(config: TrainConfig, recipe: Recipe, layout: Layout) -> None:
    """Raise ConfigError for what a config sets and this family of image models would pass over in silence, or could not do."""
    name, facts = config.pretrained_model_name_or_path, facts_of(config)
    for key in changed(config):
        if "image" not in facts[key].kinds:
            raise ConfigError(f"`{key}` is for language models, and {name} is of the family {layout.family}")
        if (trait := facts[key].trait) is not None and trait not in layout.traits:
            raise ConfigError(f"`{key}` is for {owners(trait)}, and {name} is of the family {layout.family}")
    if recipe.users is not None and not layout.users:
        raise ConfigError(f"`{config.method}` gives the model a user branch, which the layers of the family {layout.family} do not take")
    if METHODS[config.method].inference == "negative_guidance" and not layout.steers:
        raise ConfigError(
            f"`{config.method}` draws with negative guidance, whose branches are not told apart in the family {layout.family}"
        )
    objective = recipe.objective.name
    if recipe.facts.diffusion == "N":
        raise ConfigError(f"objective `{objective}` reads tokens, lengths or probabilities, which images lack; it is for language models")
    if recipe.facts.steps and not config.prompts:
        raise ConfigError(
            f"objective `{objective}` reads steps of the sampler that drew the images, which a dataset does not have; give `prompts` to "
            "draw, or choose awm, dgpo or diffusion_nft, which learn from the same advantages on clean latents"
        )
    if (recipe.facts.mismatched or recipe.neighbours) and config.train_batch_size == 1:
        raise ConfigError(f"objective `{objective}` estimates its baseline from the other records of a batch; set train_batch_size above 1")
    check_controls(layout, name, recipe.tuning)
    check_edit(config, layout, recipe.tuning)
    check_flow_rollout(config, layout.flow)
    check_memory_format(config, layout.component)
    check_sides(parse_buckets(config.aspect_ratio_buckets), layout.component)
    if config.resolution is not None:
        check_sides([(config.resolution, config.resolution)], layout.component, "resolution")


def check_text(config: TrainConfig, recipe: Recipe) -> None:
    """Raise ConfigError for what a config sets and a language model would pass over in silence, or could not do."""
    facts = facts_of(config)
    for key in changed(config):
        if "text" not in facts[key].kinds:
            raise ConfigError(f"`{key}` is for image models, and {config.pretrained_model_name_or_path} is a language model")
    if recipe.users is not None or recipe.tuning == "user":
        raise ConfigError("only image models have users; choose another method than ppd for a language model")
    if "forward" not in recipe.trajectory_spec or "squared" not in recipe.error_spec:
        raise ConfigError(f"method `{config.method}` is made for image models; choose dpo, with the objective, for a language model")
    objective, likelihood = recipe.objective, single("likelihood", config.likelihood or "sum")[0]
    name = f"objective.{objective.name}.beta"
    require(
        name, objective.given.get("beta"), lambda v: v <= 100, "about 0.1, for it multiplies nats; this looks like one of an image model"
    )
    if objective.name == "mapo":
        raise ConfigError("objective `mapo` is made for denoising errors; choose another for a language model, for example dpo")
    if recipe.residuals:
        raise ConfigError(f"objective `{objective.name}` compares the outputs of denoisers; choose another for a language model")
    if config.attention_name not in (None, "native"):
        raise ConfigError(f"`attention_backend` is {config.attention_name!r}; of language models PyTorch's own is used (sdpa)")
    check_online_texts(config)
    check_name("likelihood", likelihood, LIKELIHOODS)
    check_rationales(config, recipe.facts, likelihood)
    if recipe.facts.sums and likelihood in ("mean", "ld_dpo"):
        raise ConfigError(f"objective `{objective.name}` adds up tokens itself, and `likelihood` is {likelihood}; leave it out")


def _check_objective(config: TrainConfig) -> None:
    """Check an objective's constants wherever they stood, and that it has the reference it compares with."""
    ((former, constants),) = part(config, "objective").items()
    check_name("objective", former, [*OBJECTIVES, *RENAMED])
    bound = bind_objective({former: constants})
    name = bound.name
    if name != former:
        logger.info("objective `%s` is called `%s` now", former, name)
    if name == "mapo":
        require("objective.mapo.beta", constants.get("beta"), lambda v: v <= 100, "MaPO's own beta, about 0.1; this looks like one of DPO")
    facts = METHODS[config.method].facts or OBJECTIVES[name].facts
    drifts = facts.drift is not None and bound.constants[facts.drift] > 0
    if (facts.reference or drifts) and not compares(config):
        raise ConfigError(f"objective `{name}` compares with a reference, and `reference` is none; set it to policy_start")
    _check_outputs(config, name, facts)
    columns = (*facts.columns, *facts.optional)
    for column in config.scores:
        if column not in columns:
            cure = did_you_mean(column, columns) if columns else " It reads none"
            raise ConfigError(f"`scores`: objective `{name}` reads no `{column}`.{cure}")


def _check_outputs(config: TrainConfig, objective: str, facts: Facts) -> None:
    """Raise ConfigError where the outputs of networks are to be compared, and the other parts do not allow it."""
    if config.sdpo_mu is not None and (facts.diffusion in ("L", "N") or facts.candidates != 2):
        raise ConfigError(f"`sdpo_mu` is for pairs of images, and objective `{objective}` is not of these; leave it out, or choose dpo")
    if (error := next(iter(part(config, "error")))) != "squared" and compares_outputs(config):
        cause = f"objective `{objective}`" if facts.residuals else "`sdpo_mu`"
        raise ConfigError(f"{cause} compares the outputs of networks by their squares, and `error` is {error}; set it to squared")


def _check_transforms(config: TrainConfig) -> None:
    """Bind every transform; constants that come from the data are known only when there are some."""
    for spec in transforms_of(config):
        bind("transform", TRANSFORMS, spec, low=0.0, high=1.0, most=0.0, candidates=2)


def _names(config: TrainConfig) -> list[str]:
    """Return the names of the transforms."""
    return [single("transform", spec)[0] for spec in transforms_of(config)]


def _check_users(config: TrainConfig) -> None:
    """Check that there is a user encoder where a user branch is trained, and nowhere else, and bind the encoder's constants."""
    users, tuning = users_of(config), tuning_of(config)
    if (users is None) != (tuning != "user"):
        raise ConfigError(
            f"`train_method` is {tuning} and `user_encoder` is {users}; expected train_method user with a user encoder "
            "(method ppd, or another one with `user_encoder`), and never without one"
        )
    if users is None:
        return
    of_users = bind("user_encoder", USER_ENCODERS, users)().of_users
    if config.curriculum is not None and of_users:
        raise ConfigError("`curriculum` gives the training an order, and users are sampled uniformly; leave one of them out")
    if not of_users and "prompt_only" in _names(config):
        raise ConfigError("sliders are learnt from pictures, which the transform `prompt_only` removes; leave it out")
    if of_users and (odd := [name for name in _names(config) if name in ("prompt_only", "preferred", "invert")]):
        raise ConfigError(f"a user is known by their choices, which the transform `{odd[0]}` removes or inverts; leave it out")


def _check_reward(config: TrainConfig) -> None:
    """Raise ConfigError for keys of reward models where none is trained and, where one is, for all others."""
    facts = facts_of(config)
    if METHODS[config.method].inference != "reward":
        if odd := [name for name in changed(config) if facts[name].kinds == ("reward",)]:
            raise ConfigError(f"`{odd[0]}` is of reward models; `method` is {config.method}, expected reward_bt or another reward method")
        return
    if odd := sorted(name for name in changed(config) if "reward" not in facts[name].kinds):
        raise ConfigError(f"`{odd[0]}` means nothing to a reward model, a head on frozen embeddings; leave it out")
    if not 0.0 < config.held_out_share < 1.0:
        raise ConfigError(f"`held_out_share` is {config.held_out_share}; expected a share of the prompts, above 0 and below 1")
    if config.held_out_split_name is not None and config.held_out_dataset_name is None:
        raise ConfigError("`held_out_split_name` is of `held_out_dataset_name`, and there is none; name it, or leave both out")
    ((objective, constants),) = part(config, "objective").items()
    if objective != "simpo" or constants.get("gamma") != 0 or constants.get("alpha", 0) != 0:
        raise ConfigError(
            "objective of a reward model is {simpo: {beta: BETA, gamma: 0}}: with a margin, or shaped by `alpha`, differences of rewards "
            f"would be no logits of preference; found {{{objective}: {dict(constants)}}}"
        )
    check_own_loss(settings_of(config.reward_head, config.method)[0], constants.get("beta"), _names(config))
    if "invert" in _names(config):
        raise ConfigError("transform `invert` would make a reward of what people do not prefer; leave it out")


def _check_rounds(config: TrainConfig) -> None:
    """Check that rounds know what to draw, and learn something from it; and what a training may start from."""
    inference, tuning = METHODS[config.method].inference, tuning_of(config)
    if config.start_from is not None and (tuning == "user" or inference == "reward"):
        raise ConfigError(f"`start_from` goes on from an adapter or a denoiser, which `{config.method}` does not train; leave it out")
    others = ("start_from_lora", "base_lora", "denoiser") if tuning == "full" else ("start_from_lora",)
    if config.round_momentum and (taken := [name for name in others if getattr(config, name)]):
        raise ConfigError(f"`round_momentum` sees how far the first round went from the model, which `{taken[0]}` changes; leave one out")
    require("round_momentum", config.round_momentum, lambda v: not v or config.rounds > 1, "0 for a single round, with none before it")
    if not config.generate:
        require("rounds", config.rounds, lambda v: v == 1, "`generate` with it: after the first round the model draws its own images")
        return
    if isinstance(scorers := config.generate.get("scorers"), list):
        check_scorer_names(scorers)
    if config.dataset_name and config.rounds == 1:
        raise ConfigError("`generate` draws what `dataset_name` has for the first round, and there is no other; leave one of them out")
    if inference != "plain" or tuning == "user" or "prompt_only" in _names(config):
        raise ConfigError(f"`generate`: `{config.method}` does not learn which of its own images are better; choose another method")
    require("resume_from_checkpoint", config.resume_from_checkpoint, lambda v: v == "latest", "`latest`, which finds the round, too")


def _check_evaluations(config: TrainConfig) -> None:
    """Check that evaluations have prompts, pictures of one network to judge, and a reward."""
    check_scorer_names([*config.eval_scorers, *filter(None, [config.eval_reward])])
    if config.eval_every is None:
        for name in sorted(EVALUATIONS & set(changed(config))):
            require(name, getattr(config, name), lambda _: False, "nothing without `eval_every`, which says when it is used")
        return
    require("eval_prompts", config.eval_prompts, bool, "prompts, or a file of them, to draw every `eval_every` steps")
    inference, tuning = METHODS[config.method].inference, tuning_of(config)
    if tuning == "user" or inference == "reward" or (inference == "negative_guidance" and tuning == "full"):
        raise ConfigError(f"`eval_every` draws with one network alone, which `{config.method}` cannot here; leave it out")
    if config.eval_reward is None and {"prompt_only", "preferred"} & set(_names(config)):
        raise ConfigError(
            f"`eval_every` needs `eval_reward` here: `{config.method}` compares no candidates, so it has no implicit accuracy"
        )


def parse_buckets(text: str | None) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of every bucket of "672,1568;688,1504", as diffusers' scripts take them. Raises ConfigError for other text."""
    buckets = []
    for pair in () if text is None else text.strip().split(";"):
        match = re.fullmatch(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*", pair)
        if match is None:
            raise ConfigError(f"`aspect_ratio_buckets`: found {pair!r}; expected height,width in pixels, and `;` between the buckets")
        buckets.append((int(match[1]), int(match[2])))
    return tuple(buckets)


def _check_buckets(config: TrainConfig) -> None:
    """Check the aspect-ratio buckets by themselves, and against the method's data."""
    if parse_buckets(config.aspect_ratio_buckets) and "prompt_only" in _names(config):
        raise ConfigError(f"`aspect_ratio_buckets` are for images, and `{config.method}` learns from prompts alone; leave them out")


def check_sides(sizes: Iterable[tuple[int, int]], component: str, key: str = "aspect_ratio_buckets") -> None:
    """Raise ConfigError for a size that latents cannot fill: 8 pixels to each number, which transformers take in patches of 2 by 2."""
    side = 16 if component == "transformer" else 8
    for height, width in sizes:
        if min(height, width) == 0 or height % side or width % side:
            raise ConfigError(f"`{key}`: {height},{width} of a {component}; expected multiples of {side}")
