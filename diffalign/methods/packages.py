"""Optional packages, and the memory and speed switches that need them. Nothing here imports torch or the packages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from diffalign.core.errors import ConfigError, check_name
from diffalign.methods.config import SYNONYMS, TrainConfig
from diffalign.methods.recipe import tuning_of

TRACKERS: dict[str, tuple[str, ...]] = {  # of accelerate, with the packages of which one is needed
    "tensorboard": ("tensorboard", "tensorboardX"),
    **{name: (name,) for name in ("wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab")},
}
# Packages by their import name, and how to get them.
PIP = {name: f"pip install {name}" for name in ("bitsandbytes", "torchao", "xformers", "kernels", "gguf", "tensorboardX", *TRACKERS)}
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


def check_switches(config: TrainConfig) -> None:
    """Check what excludes what among memory and speed switches, and the names of what optional packages do."""
    for switch, (key, value) in SYNONYMS.items():
        other = getattr(config, key)
        if getattr(config, switch) and other not in (value, getattr(TrainConfig(), key)):
            raise ConfigError(f"`{switch}` and `{key}: {other}` are both set; choose one (--no_{switch} takes back what a recipe sets)")
    if config.quantization is not None and tuning_of(config) not in ("lora", "user"):
        raise ConfigError(
            f"`quantization` is of a frozen base; `train_method` is {tuning_of(config)}, which needs the weights themselves: set it to lora"
        )
    if (name := config.attention_name) is not None:
        if name in FORWARD_ONLY:
            raise ConfigError(f"`attention_backend` is {name!r}, which has no backward pass: it is for inference alone")
        check_name("attention_backend", name, (*ATTENTION, "sdpa"))
    trackers_of(config)


def trackers_of(config: TrainConfig) -> list[str]:
    """Return the trackers of `report_to`: none, one, several with commas between them, or all that are installed.

    Raises ConfigError for a name that is no tracker.
    """
    names = [name.strip() for name in (config.report_to or "none").split(",")]
    if names == ["none"]:
        return []
    if names == ["all"]:
        return [name for name in TRACKERS if is_installed(TRACKERS[name])]
    for name in names:
        check_name("report_to", name, (*TRACKERS, "all", "none"))
        if name in ("all", "none"):
            raise ConfigError(f"`report_to` is {config.report_to!r}; `{name}` stands alone")
    return names


def missing_packages(config: TrainConfig) -> list[str]:
    """Return what a config needs and is not installed, a sentence each, with the command that installs it."""
    wanted = {f"optimizer: {config.optimizer_name}": OPTIMIZERS.get(config.optimizer_name, ())}
    if config.quantization is not None:
        wanted[f"quantization: {config.quantization}"] = (QUANTIZATIONS[config.quantization],)
    if config.denoiser is not None and config.denoiser.lower().endswith(".gguf"):
        wanted[f"denoiser: {config.denoiser}"] = ("gguf",)
    if (name := config.attention_name) is not None:
        wanted[f"attention_backend: {name}"] = tuple(filter(None, (ATTENTION[name],)))
    wanted |= {f"report_to: {name}": TRACKERS[name] for name in trackers_of(config)}
    return [
        f"`{setting}` needs {' or '.join(packages)}: {PIP[packages[0]]}"
        for setting, packages in wanted.items()
        if packages and not is_installed(packages)
    ]


def is_installed(packages: Sequence[str]) -> bool:
    """Return whether one of `packages` is there."""
    return any(find_spec(name) is not None for name in packages)


def check_memory_format(config: TrainConfig, component: str) -> None:
    """Check the memory format against what the pipeline calls its denoiser."""
    if config.channels_last and component != "unet":
        raise ConfigError("`channels_last` orders the memory of convolutions, and this model's denoiser is a transformer, which has none")
