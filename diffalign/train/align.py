"""Training in one call. Everything cheap is checked before torch is imported, and everything else before weights load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffalign.core.errors import ConfigError
from diffalign.core.processes import process_state
from diffalign.data.records import Record
from diffalign.data.table import is_table, write_table
from diffalign.data.view import View
from diffalign.methods import METHODS
from diffalign.methods.build.data import open_dataset
from diffalign.methods.checks import check_family, check_text
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.models.backbones.folders import LAYOUTS, check_folder, check_language_model, is_language_model, is_local, lasting, resolve

if TYPE_CHECKING:
    pass

# What diffalign.models.adapters, which imports torch, writes.
RESULTS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json", "unet", "transformer")
RESULTS += ("ip_adapter.safetensors", "user_encoder.safetensors", "model", "reward_head.safetensors", "reliability.png", "held_out")


def align(
    model: str | Path, data: str | Path | Iterable[Record], *, method: str = "diffusion_dpo", output_dir: str | Path, **options: Any
) -> Path:
    """Fine-tune `model` on preferences and return the folder with the result, for `diffalign.load`.

    `data` is a table, dataset file, folder or hub id, or records. `options` are the keys of `TrainConfig`; what draws its own data, by
    `generate`, is `diffalign.train.rounds.train`'s.
    Raises ConfigError, RecordError, TableError or CheckpointError before any weight loads where the input cannot be meant.
    """
    named = isinstance(data, str | Path)
    path = Path(output_dir) / "data"
    given: Mapping[str, Any] = {
        "pretrained_model_name_or_path": str(model),
        "dataset_name": str(data if named else path),
        "method": method,
        "output_dir": str(output_dir),
        **options,
    }
    config = from_mapping(given, "diffalign.align")
    if not named:
        check(config)
        write_table(path, data, overwrite=is_table(path))
    return train(config)


def train(config: TrainConfig) -> Path:
    """Run a training config from its checks to its last step; return the output folder. Rounds are `diffalign.train.rounds.train`'s."""
    if config.generate:
        raise ConfigError(
            "`generate` draws the data, and here they must be there already; call diffalign.train.rounds.train(TrainConfig(...))"
        )
    folder = run(config)
    process_state().destroy_process_group()
    return folder


def run(config: TrainConfig) -> Path:
    """Do what `train` does, and keep the processes of a launch together for what comes next."""
    check(config)
    if "forward" not in config.part("trajectory") or config.error or config.trajectory_cache:
        from diffalign.methods.build import (
            image as build,  # takes seconds, so only where there is much to get wrong, and before an import that may take hours
        )

        build.check(config)
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    view = _open_together(config) if launched else open_dataset(config, kind=kind_of(config))
    import torch  # torch and diffusers take seconds to import; what is above needs neither

    from diffalign.train.trainer import Trainer

    torch.set_flush_denormal(True)
    return Trainer(config, view).fit()


def check(config: TrainConfig) -> None:
    """Raise the error that a config, its model folder or its output folder deserves; remove an earlier run that may be overwritten."""
    config.check()
    check_model(config)
    check_start(config)
    if int(os.environ.get("RANK", "0")) == 0:
        _check_output(config)


def check_start(config: TrainConfig) -> None:
    """Raise ConfigError where `start_from` is no finished run, or one whose result is of another model or shape."""
    if config.start_from is None:
        return
    folder = Path(config.start_from)
    if not (folder / "run.json").is_file():
        raise ConfigError(f"`start_from`: {folder} is no finished run (it has no run.json); expected the output_dir of one")
    run, made = json.loads((folder / "run.json").read_text()), TrainConfig(**load_yaml(folder / "config.yaml"))
    found = {name: run.get(name) for name in ("base", "revision", "variant", "vae", "inference")} | _shape(made)
    wanted = {
        "base": lasting(config.pretrained_model_name_or_path),
        "revision": config.revision,
        "variant": config.variant,
        "vae": config.pretrained_vae_model_name_or_path and lasting(config.pretrained_vae_model_name_or_path),
        "inference": METHODS[config.method].inference,
        **_shape(config),
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise ConfigError(f"`start_from`: {folder} has {name} {found[name]}, and this run {value}; expected the same")


def _shape(config: TrainConfig) -> dict[str, Any]:
    """Return what the weights of a result depend on."""
    if config.tuning == "full":
        return {"train_method": "full"}
    alpha = config.lora_alpha or config.rank
    return {"train_method": config.tuning, "rank": config.rank, "lora_alpha": alpha, "lora_layers": config.lora_layers}


def check_model(config: TrainConfig) -> None:
    """Raise the error that a local model folder deserves, by itself and with what the config asks of it."""
    name = config.pretrained_model_name_or_path
    if METHODS[config.method].inference == "reward":
        return  # the config's own checks have looked at its embeddings
    if is_language_model(name):
        check_language_model(name, config.variant)
        check_text(config)
    elif (kind := check_folder(resolve(name), config.variant)) is not None:
        check_family(config, LAYOUTS[kind])


def _open_together(config: TrainConfig) -> View:
    """Open the dataset in every process of a launch; the first one imports it, the others read what it wrote."""
    state = process_state()
    with state.main_process_first():
        return open_dataset(config, reuse=not state.is_main_process, kind=kind_of(config))


def kind_of(config: TrainConfig) -> str | None:
    """Return what the model trains on, image or text; None for a hub id, of which nothing is known yet."""
    name = config.pretrained_model_name_or_path
    if METHODS[config.method].inference == "reward":
        return "image"
    if not is_local(resolve(name)):
        return None
    return "text" if is_language_model(name) else "image"


def _check_output(config: TrainConfig) -> None:
    """Raise ConfigError rather than train over an earlier run; with `overwrite_output_dir` remove it."""
    folder = Path(config.output_dir)
    found = [path for name in ("run.json", "train_log.jsonl", "checkpoint-*", "round-*") for path in sorted(folder.glob(name))]
    if not found or config.resume_from_checkpoint:
        return
    if not config.overwrite_output_dir:
        raise ConfigError(
            f"{found[0]}: `output_dir` holds an earlier run; go on with --resume_from_checkpoint latest, "
            "replace it with --overwrite_output_dir, or choose another folder"
        )
    for path in [*found, *(folder / name for name in (*RESULTS, "validation", "eval", "best", "eval.jsonl", "config.yaml"))]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
