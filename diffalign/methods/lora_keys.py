"""The keys of files that change a run's base (a denoiser, LoRA), or that it goes on from, against other keys.

Nothing here imports torch or reads a file.
"""

from __future__ import annotations

from diffalign.core.errors import ConfigError
from diffalign.methods.base import Method
from diffalign.methods.config import TrainConfig


def check_lora_keys(config: TrainConfig, method: Method, tuning: str) -> None:
    """Raise ConfigError where such files are not meant together with other keys."""
    if config.start_from_lora is not None:
        if config.start_from is not None:
            raise ConfigError("`start_from` and `start_from_lora` both say what goes on; leave one of them out")
        if tuning not in ("lora", "dora") or method.inference != "plain":
            why = f"`train_method` is {tuning}" if tuning not in ("lora", "dora") else f"`{config.method}` learns what is subtracted"
            raise ConfigError(f"`start_from_lora` trains the adapter of a file further, and {why}; fuse it with `base_lora` instead")
    if config.train_text_encoder:
        _check_text_encoder(config, method, tuning)
    elif config.text_encoder_lr is not None:
        raise ConfigError("`text_encoder_lr` is of text encoders, which are not trained here; set train_text_encoder, or leave it out")
    of_base = next((name for name in ("denoiser", "base_lora") if getattr(config, name)), None)
    if of_base and config.quantization is not None:
        raise ConfigError(
            f"`{of_base}` changes the weights of the model as it lies on disk, which `quantization` reads; make a folder of both with "
            "diffusers' save_pretrained and train that, or leave one of them out"
        )
    if of_base and tuning == "full" and method.inference == "negative_guidance":
        raise ConfigError(
            f"`{of_base}`: `{config.method}` of all weights keeps their difference from the plain base; set train_method lora"
        )


def _check_text_encoder(config: TrainConfig, method: Method, tuning: str) -> None:
    """Raise ConfigError where text encoders cannot be trained together with other keys."""
    if tuning not in ("lora", "dora"):
        raise ConfigError(f"`train_text_encoder` is for adapters, and `train_method` is {tuning}; leave it out, or set train_method lora")
    if method.inference != "plain":
        raise ConfigError(
            f"`train_text_encoder`: `{config.method}` draws with negative guidance, whose two branches share the text encoder; leave it out"
        )
    if config.start_model_steps:
        raise ConfigError(
            "`train_text_encoder`: the last steps of a picture (`start_model_steps`) would be those of the start model with prompts that "
            "were read by another one; leave one of them out"
        )
