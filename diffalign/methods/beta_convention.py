"""Betas that another program counts its own way, for a training config: which convention its model calls for, and what it is here."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.methods.checks import kind_of
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import part
from diffalign.models.backbones.folders import LAYOUTS, check_folder, is_local, resolve
from diffalign.objectives.beta import CONVENTIONS, convert

logger = logging.getLogger(__name__)
BetaConvention = Literal["diffalign", "diffusers", "trl", "simpletuner", "flow_grpo"]


def with_beta_of(config: TrainConfig, convention: BetaConvention) -> TrainConfig:
    """Return `config` with its beta, which `convention` counts, as it is counted here; what is done is logged.

    Raises ConfigError where there is no beta to convert, or the convention is none of this kind of model.
    """
    if convention == "diffalign":
        return config
    if config.beta is None:
        raise ConfigError(f"`beta_convention` is {convention}, and there is no `beta` to convert; write --beta, too")
    if "mapo" in part(config, "objective"):
        raise ConfigError(f"`beta_convention` is {convention}, and MaPO's beta is another quantity, 0.1; leave the convention out")
    of_texts = kind_of(config) == "text"
    if of_texts != (convention == "trl"):
        kind = "a language model: nats, as in trl" if of_texts else "no language model: nats, as in trl, mean nothing to it"
        raise ConfigError(f"`beta_convention` is {convention}, and {config.pretrained_model_name_or_path} is {kind}")
    if of_texts:
        logger.info("beta %g of trl is the same here", config.beta)
        return config
    rule = convention if convention != "diffusers" else "diffusers_sdxl" if _is_sdxl(config) else "diffusers_sd15"
    beta = convert(config.beta, rule, latent_shape(config) if CONVENTIONS[rule].summed else None)
    logger.info("beta %g is %g here (%s)", config.beta, beta, CONVENTIONS[rule].where)
    return replace(config, beta=float(beta))


def latent_shape(config: TrainConfig) -> tuple[int, int, int]:
    """Return (C, H, W) of the latents of a local model folder. Raises ConfigError for a hub id, of which nothing is known yet."""
    folder = Path(resolve(config.pretrained_model_name_or_path))
    if not is_local(str(folder)):
        raise ConfigError(
            f"`beta_convention` simpletuner sums over the latent, and {folder} is no local folder that says how large it is; "
            "multiply beta by C * H * W yourself (16384 for SD1.5 at 512 pixels)"
        )
    layout = LAYOUTS[check_folder(str(folder), config.variant) or ""]
    vae = read_mapping(Path(config.pretrained_vae_model_name_or_path or folder / "vae") / "config.json", CheckpointError)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    if config.resolution is not None:
        side = config.resolution // factor
    else:
        side = read_mapping(folder / layout.component / "config.json", CheckpointError)["sample_size"]
    return int(vae["latent_channels"]), side, side


def _is_sdxl(config: TrainConfig) -> bool:
    """Return whether diffusers' script for the model is the one of SDXL: by the folder, of a hub id by its name."""
    name = resolve(config.pretrained_model_name_or_path)
    pipeline = check_folder(name, config.variant) if is_local(name) else None
    return LAYOUTS[pipeline].family == "sdxl" if pipeline is not None else "xl" in name.lower()
