"""The checks of a training configuration: ranges, the objective's constants, switches that exclude each other, packages that are missing.

Nothing here imports torch, and nothing is loaded.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.specs import Spec, bind, single
from diffalign.models.backbones.folders import LAYOUTS, Layout, check_folder, resolve
from diffalign.models.users.settings import USER_ENCODERS
from diffalign.objectives import OBJECTIVES, facts

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")  # of diffusers
POSITIVE = ("beta", "learning_rate", "max_grad_norm", "rank", "train_batch_size", "max_train_steps", "lora_alpha", "resolution")
POSITIVE += ("max_sequence_length", "logit_std", "shift")
COUNTS = ("gradient_accumulation_steps", "cache_variants", "log_every", "checkpointing_steps", "validation_steps", "max_bad_steps")
COUNTS += ("max_length", "max_train_samples", "checkpoints_total_limit", "rounds", "eval_every", "eval_patience")
NOT_NEGATIVE = ("trajectory_cache", "lr_warmup_steps", "dataloader_num_workers", "guidance_scale", "spike_factor", "adam_weight_decay")
NOT_NEGATIVE += ("adam_epsilon", "logits_chunk")
FLOW, FLOWING = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "shift", "transport"), ("sd3", "flux")
TEXTS = ("max_length", "truncation_mode", "chat_template", "likelihood", "share_prompt", "padding_free", "logits_chunk")
TEXTS += ("precompute_ref_log_probs",)
IMAGES = (*FLOW, "pretrained_vae_model_name_or_path", "max_sequence_length", "guidance_scale", "resolution", "aspect_ratio_buckets")
IMAGES += ("random_crop", "random_flip", "trajectory", "trajectory_cache", "error", "proportion_empty_prompts", "channels_last")
IMAGES += ("sequential_candidates", "cache_variants", "start_from", "rounds", "generate", "eval_every")
LIKELIHOODS = ("sum", "mean", "ld_dpo", "joint")  # of texts
SHARES = ("lora_dropout", "ema_decay", "adam_beta1", "adam_beta2", "user_dropout")

# Packages by their import name, and how to get them.
PIP = {name: f"pip install {name}" for name in ("bitsandbytes", "torchao", "xformers", "kernels")}
PIP["flash_attn"] = "pip install flash-attn --no-build-isolation"
PIP["flash_attn_interface"] = "build FlashAttention-3 from the folder `hopper` of its repository"
OPTIMIZERS = {"adamw_8bit": ("bitsandbytes", "torchao"), "paged_adamw_8bit": ("bitsandbytes",)}
QUANTIZATIONS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
# The backends of diffusers' attention dispatcher that have a backward pass, with the package each needs.
ATTENTION: dict[str, str | None] = dict.fromkeys(("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "flex"))
ATTENTION |= {"xformers": "xformers", "flash": "flash_attn", "flash_varlen": "flash_attn", "_flash_varlen_3": "flash_attn_interface"}
ATTENTION |= dict.fromkeys(("flash_hub", "flash_varlen_hub", "flash_4_hub", "_flash_3_hub", "_flash_3_varlen_hub"), "kernels")
# Those without: quantised attention, and kernels that diffusers wraps for inference alone. Training with them would teach nothing.
FORWARD_ONLY = ("sage", "sage_hub", "sage_blackwell_hub", "sage_varlen", "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90")
FORWARD_ONLY += ("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton", "_flash_3", "aiter_fa2_hub")


def require(name: str, value: Any, holds: Callable[[Any], bool], expected: str) -> None:
    """Raise ConfigError for a value that is given and does not hold."""
    if value is not None and not holds(value):
        raise ConfigError(f"`{name}` is {value!r}; expected {expected}")


def known(name: str, value: str, table: Iterable[str]) -> None:
    """Raise ConfigError for a value that is not in `table`, with the nearest that is."""
    if value not in table:
        raise ConfigError(f"`{name}` is {value!r}.{did_you_mean(value, table)}")


def check_ranges(config: Any) -> None:
    """Check each number of a TrainConfig by itself."""
    for names, holds, expected in (
        (POSITIVE, lambda v: v > 0, "a number above zero"),
        (COUNTS, lambda v: v >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda v: v >= 0, "zero or more"),
        (SHARES, lambda v: 0 <= v < 1, "a share in [0, 1)"),
        (("label_smoothing",), lambda v: 0 <= v < 0.5, "a share in [0, 0.5)"),
        (("proportion_empty_prompts",), lambda v: 0 <= v <= 1, "a share in [0, 1]"),
        (("dataset_name",), lambda v: v or config.generate, "a file, a folder or a hub id; or what to draw, in `generate`"),
    ):
        for name in names:
            require(name, getattr(config, name), holds, expected)
    known("lr_scheduler", config.lr_scheduler, SCHEDULES)


def check_objective(spec: Mapping[str, Mapping[str, Any]], *, compares: bool) -> None:
    """Check an objective's constants wherever they stood, and that it has the reference it compares with."""
    ((name, constants),) = spec.items()
    known("objective", name, OBJECTIVES)
    bind("objective", OBJECTIVES, spec)
    for constant in ("beta", "tau", "scale", "snr", "steps", "beta_plus", "beta_minus", "eta", "own_weight"):
        require(f"objective.{name}.{constant}", constants.get(constant), lambda v: v > 0, "a number above zero")
    if name == "mapo":
        require("objective.mapo.beta", constants.get("beta"), lambda v: v <= 100, "MaPO's own beta, about 0.1; this looks like one of DPO")
    require(f"objective.{name}.label_smoothing", constants.get("label_smoothing"), lambda v: 0 <= v < 0.5, "a share in [0, 0.5)")
    if facts(name).reference and not compares:
        raise ConfigError(f"objective `{name}` compares with a reference, and `reference` is none; set it to policy_start")


def check_users(config: Any, transforms: Sequence[Spec]) -> None:
    """Check that users are told apart where, and only where, a user branch is trained, and bind the encoder's constants."""
    if (config.users is None) != (config.tuning != "user"):
        raise ConfigError(
            f"`train_method` is {config.tuning} and `user_encoder` is {config.users}; expected train_method user where users are told "
            "apart (method ppd, or another one with a user_encoder), and nowhere else"
        )
    if config.users is None:
        return
    bind("user_encoder", USER_ENCODERS, config.users)()
    if config.curriculum is not None:
        raise ConfigError("`curriculum` gives the training an order, and users are sampled uniformly; leave one of them out")
    if odd := [name for name in map(_name, transforms) if name in ("prompt_only", "preferred", "invert")]:
        raise ConfigError(f"users are told apart by their choices, which the transform `{odd[0]}` takes away or turns round; leave it out")


def check_rounds(config: Any, inference: str, transforms: Sequence[Spec]) -> None:
    """Check that rounds know what to draw, and learn something from it; and what a training may start from."""
    if config.start_from is not None and (config.tuning == "user" or inference == "reward"):
        raise ConfigError(f"`start_from` goes on from an adapter or a denoiser, which `{config.method}` does not train; leave it out")
    if not config.generate:
        require("rounds", config.rounds, lambda v: v == 1, "`generate` with it: after the first round the model draws its own images")
        return
    if config.dataset_name and config.rounds == 1:
        raise ConfigError("`generate` draws what `dataset_name` has for the first round, and there is no other; leave one of them out")
    if inference != "plain" or config.tuning == "user" or "prompt_only" in map(_name, transforms):
        raise ConfigError(f"`generate`: `{config.method}` does not learn which of its own images are better; choose another method")
    require("resume_from_checkpoint", config.resume_from_checkpoint, lambda v: v == "latest", "`latest`, which finds the round, too")


def check_watch(config: Any, inference: str, transforms: Sequence[Spec]) -> None:
    """Check that evaluations have prompts, pictures of one network to judge, and a reward."""
    if config.eval_every is None:
        for name in ("eval_prompts", "eval_scorers", "eval_reward"):
            require(name, getattr(config, name) or None, lambda _: False, "nothing without `eval_every`, which says when it is used")
        return
    require("eval_prompts", config.eval_prompts, bool, "prompts, or a file of them, to draw every `eval_every` steps")
    if config.tuning == "user" or inference == "reward" or (inference == "negative_guidance" and config.tuning == "full"):
        raise ConfigError(f"`eval_every` draws with one network alone, which `{config.method}` cannot here; leave it out")
    if config.eval_reward is None and {"prompt_only", "preferred"} & set(map(_name, transforms)):
        raise ConfigError(
            f"`eval_every` needs `eval_reward` here: `{config.method}` compares no candidates, so it has no implicit accuracy"
        )


def _name(spec: Spec) -> str:
    return single("transform", spec)[0]


def parse_buckets(text: str | None) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of every bucket of "672,1568;688,1504", as diffusers' scripts take them. Raises ConfigError for other text."""
    buckets = []
    for pair in () if text is None else text.strip().split(";"):
        found = re.fullmatch(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*", pair)
        if found is None:
            raise ConfigError(f"`aspect_ratio_buckets`: found {pair!r}; expected height,width in pixels, and `;` between the buckets")
        buckets.append((int(found[1]), int(found[2])))
    return tuple(buckets)


def check_buckets(config: Any, transforms: Sequence[Spec]) -> None:
    """Check the aspect-ratio buckets by themselves, and against the method's data and the model's folder."""
    if not (buckets := parse_buckets(config.aspect_ratio_buckets)):
        return
    if "prompt_only" in [single("transform", spec)[0] for spec in transforms]:
        raise ConfigError(f"`aspect_ratio_buckets` are for images, and `{config.method}` learns from prompts alone; leave them out")
    kind = check_folder(resolve(config.pretrained_model_name_or_path), config.variant)
    check_sides(buckets, LAYOUTS[kind].component if kind else "unet")  # of a hub id nothing is known yet


def check_sides(sizes: Iterable[tuple[int, int]], component: str, key: str = "aspect_ratio_buckets") -> None:
    """Raise ConfigError for a size that latents cannot fill: 8 pixels to each number, which transformers take in patches of 2 by 2."""
    side = 16 if component == "transformer" else 8
    for height, width in sizes:
        if min(height, width) == 0 or height % side or width % side:
            raise ConfigError(f"`{key}`: {height},{width} of a {component}; expected multiples of {side}")


def check_memory_format(config: Any, component: str) -> None:
    """Check the memory format against what the pipeline calls its denoiser."""
    if config.channels_last and component != "unet":
        raise ConfigError("`channels_last` orders the memory of convolutions, and this model's denoiser is a transformer, which has none")


def check_family(config: Any, layout: Layout) -> None:
    """Raise ConfigError for what a TrainConfig sets and this family of models would pass over in silence, or could not do."""
    family, defaults = layout.family, {f.name: f.default for f in dataclasses.fields(config)}
    for names, holds, whom in (
        (TEXTS, False, "language models"),
        (FLOW, family in FLOWING, "flow models (sd3, flux)"),
        (("guidance_scale",), family == "flux", "guidance-distilled models (flux)"),
        (("max_sequence_length",), layout.t5 is not None, "the prompts of T5 (pixart, sd3, flux)"),
    ):
        for name in names:
            if not holds and getattr(config, name) != defaults[name]:
                raise ConfigError(f"`{name}` is for {whom}, and {config.pretrained_model_name_or_path} is of the family {family}")
    ((objective, _),) = config.part("objective").items()
    if facts(objective).diffusion == "N":
        raise ConfigError(f"objective `{objective}` reads tokens, lengths or probabilities, which images lack; it is for language models")
    if facts(objective).mismatched and config.train_batch_size == 1:
        raise ConfigError(f"objective `{objective}` estimates its baseline from the other records of a batch; set train_batch_size above 1")
    check_memory_format(config, layout.component)
    if config.resolution is not None:
        check_sides([(config.resolution, config.resolution)], layout.component, "resolution")


def check_text(config: Any) -> None:
    """Raise ConfigError for what a TrainConfig sets and a language model would pass over in silence, or could not do."""
    defaults = type(config)()
    for name in IMAGES:
        if getattr(config, name) != getattr(defaults, name):
            raise ConfigError(f"`{name}` is for image models, and {config.pretrained_model_name_or_path} is a language model")
    if config.users is not None or config.tuning == "user":
        raise ConfigError("users are told apart in image models alone; choose another method than ppd for a language model")
    if any(single(kind, config.part(kind))[0] != plain for kind, plain in (("trajectory", "forward"), ("error", "squared"))):
        raise ConfigError(f"method `{config.method}` is made for image models; choose dpo, with the objective, for a language model")
    ((objective, constants),) = config.part("objective").items()
    name = f"objective.{objective}.beta"
    require(name, constants.get("beta"), lambda v: v <= 100, "about 0.1, for it multiplies nats; this looks like one of an image model")
    if objective == "mapo":
        raise ConfigError(f"objective `{objective}` is made for denoising errors; choose another for a language model, for example dpo")
    if config.attention_name not in (None, "native"):
        raise ConfigError(f"`attention_backend` is {config.attention_name!r}; of language models PyTorch's own is used (sdpa)")
    likelihood = single("likelihood", config.likelihood or "sum")[0]
    known("likelihood", likelihood, LIKELIHOODS)
    if facts(objective).sums and likelihood in ("mean", "ld_dpo"):
        raise ConfigError(f"objective `{objective}` adds up tokens itself, and `likelihood` is {likelihood}; leave it out")


def check_switches(config: Any) -> None:
    """Check what excludes what among memory and speed switches, and ask for optional packages."""
    if config.use_8bit_adam and config.optimizer not in ("adamw", "adamw_8bit"):
        raise ConfigError(f"`use_8bit_adam` and `optimizer: {config.optimizer}` are both set; choose one")
    if config.enable_xformers_memory_efficient_attention and config.attention_backend not in (None, "xformers"):
        raise ConfigError(
            f"`enable_xformers_memory_efficient_attention` and `attention_backend: {config.attention_backend}` are both set; choose one"
        )
    if config.quantization is not None and config.tuning not in ("lora", "user"):
        raise ConfigError(
            f"`quantization` is of a frozen base; `train_method` is {config.tuning}, which needs the weights themselves: set it to lora"
        )
    _check_packages(config)


def _check_packages(config: Any) -> None:
    """Ask for optional packages before anything is read."""
    _installed(f"optimizer: {config.optimizer_name}", OPTIMIZERS.get(config.optimizer_name, ()))
    if config.quantization is not None:
        _installed(f"quantization: {config.quantization}", (QUANTIZATIONS[config.quantization],))
    if (name := config.attention_name) is not None:
        if name in FORWARD_ONLY:
            raise ConfigError(f"`attention_backend` is {name!r}, which has no backward pass: it is for inference alone")
        known("attention_backend", name, (*ATTENTION, "sdpa"))
        _installed(f"attention_backend: {name}", filter(None, (ATTENTION[name],)))
    if config.report_to is not None and importlib.util.find_spec(config.report_to) is None:
        raise ConfigError(f"`report_to` is {config.report_to!r}, which is not installed; expected a tracker such as tensorboard")


def _installed(setting: str, packages: Iterable[str]) -> None:
    """Raise ConfigError if none of `packages` is there, though the setting needs one."""
    names = list(packages)
    if names and all(importlib.util.find_spec(name) is None for name in names):
        raise ConfigError(f"`{setting}` needs {' or '.join(names)}: {PIP[names[0]]}")
