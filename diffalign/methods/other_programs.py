"""Settings of other programs: the flags of diffusers' DPO scripts (train_diffusion_dpo.py, _sdxl.py) and of `trl dpo`, one by one.

Each has the same name and meaning here, or another name (`RENAMED`), or a value to convert (`CONVERTED`), or nothing to do here
(`WITHOUT_EFFECT`), or is refused with what to write instead (`INSTEAD`), unless it has the value that asks for nothing (`NEUTRAL`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffalign.core.errors import ConfigError, nearest
from diffalign.core.values import key_value

RENAMED = {
    "batch_size": "train_batch_size",
    "dataset_train_split": "dataset_split_name",
    "logging_steps": "log_every",
    "lora_r": "rank",
    "lora_target_modules": "lora_layers",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "max_steps": "max_train_steps",
    "model_name_or_path": "pretrained_model_name_or_path",
    "model_revision": "revision",
    "num_warmup_steps": "lr_warmup_steps",
    "per_device_train_batch_size": "train_batch_size",
    "pretrained_model": "pretrained_model_name_or_path",
    "save_steps": "checkpointing_steps",
    "save_total_limit": "checkpoints_total_limit",
    "train_steps": "max_train_steps",
    "warmup_steps": "lr_warmup_steps",
    "weight_decay": "adam_weight_decay",
}
LOSSES = {  # TRL's loss types by the objectives that they are; diffusers' SD1.5 script has the first two
    "sigmoid": "dpo",
    "hinge": "hinge",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust",
    "bco_pair": "bco",
    "sppo_hard": "sppo",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
}
OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}


def _named(flag: str, value: Any, table: Mapping[str, str], instead: str) -> str:
    """Return what `table` has for a value. Raises ConfigError with what to write instead."""
    if str(value) not in table:
        raise ConfigError(f"--{flag} {value}: {instead}")
    return table[str(value)]


def _switch(flag: str, value: Any, keys: dict[str, Any], off: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the keys that a switch stands for; `off` where it is off."""
    return keys if key_value(f"--{flag}", bool, value) else off or {}


LOSS = "write --objective NAME (docs/objectives.md has them all; ipo as {ipo: {tau: BETA}}, without --beta)"
OPTIMIZER = "write --optimizer adamw, adamw_8bit, paged_adamw_8bit or adafactor"
CONVERTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "attn_implementation": lambda v: {"attention_backend": _named("attn_implementation", v, {"sdpa": "sdpa"}, "texts use sdpa here")},
    "bf16": lambda v: _switch("bf16", v, {"mixed_precision": "bf16"}),
    "fp16": lambda v: _switch("fp16", v, {"mixed_precision": "fp16"}),
    "ld_alpha": lambda v: {"likelihood": {"ld_dpo": {"alpha": key_value("--ld_alpha", float, v)}}},
    "load_in_4bit": lambda v: _switch("load_in_4bit", v, {"quantization": "nf4"}),
    "load_in_8bit": lambda v: _switch("load_in_8bit", v, {"quantization": "int8"}),
    "loss_type": lambda v: {"objective": _named("loss_type", v, LOSSES, LOSS)},
    "no_hflip": lambda v: _switch("no_hflip", v, {"random_flip": False}),
    "optim": lambda v: {"optimizer": _named("optim", v, OPTIMIZERS, OPTIMIZER)},
    "use_dora": lambda v: _switch("use_dora", v, {"train_method": "dora"}),
    "use_peft": lambda v: _switch("use_peft", v, {"train_method": "lora"}, {"train_method": "full"}),
}
EXPORTED = "`diffalign export --push_to_hub --hub_model_id OWNER/NAME` uploads a finished run"
LOGGED = "train_log.jsonl has every step; --report_to names a tracker, and its logs lie in output_dir/logs"
LAUNCHED = "`accelerate launch -m diffalign.cli train ...` sees to the processes"
OF_A_LAUNCH = "the model is not sharded; every process holds the whole of it"
EVALUATED = "`diffalign eval --dataset_name HELD_OUT` measures a finished run on pairs"
WITHOUT_EFFECT = {
    "accelerator_config": LAUNCHED,
    "allow_tf32": "PyTorch's own setting counts; the environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 allows TF32",
    "tf32": "PyTorch's own setting counts; the environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 allows TF32",
    "bf16_full_eval": EVALUATED,
    "fp16_full_eval": EVALUATED,
    "center_crop": "the crop is in the middle without --random_crop",
    "dataset_num_proc": "--dataloader_num_workers is the number of processes that decode",
    "dataset_test_split": EVALUATED,
    "disable_dropout": "dropout of the model is off in scores anyway; --lora_dropout is that of the adapter",
    "disable_tqdm": "there is a bar on a terminal, and a line every ten seconds elsewhere",
    "do_eval": EVALUATED,
    "do_predict": EVALUATED,
    "do_train": "`diffalign train` trains",
    "eval_accumulation_steps": EVALUATED,
    "eval_delay": EVALUATED,
    "eval_do_concat_batches": EVALUATED,
    "eval_on_start": EVALUATED,
    "eval_steps": EVALUATED,
    "eval_strategy": EVALUATED,
    "eval_use_gather_object": EVALUATED,
    "batch_eval_metrics": EVALUATED,
    "include_for_metrics": EVALUATED,
    "per_device_eval_batch_size": EVALUATED,
    "prediction_loss_only": EVALUATED,
    "hub_always_push": EXPORTED,
    "hub_model_id": EXPORTED,
    "hub_private_repo": EXPORTED,
    "hub_revision": EXPORTED,
    "hub_strategy": EXPORTED,
    "push_to_hub": EXPORTED,
    "ignore_bias_buffers": LAUNCHED,
    "ddp_backend": LAUNCHED,
    "ddp_broadcast_buffers": LAUNCHED,
    "ddp_bucket_cap_mb": LAUNCHED,
    "ddp_find_unused_parameters": LAUNCHED,
    "ddp_static_graph": LAUNCHED,
    "ddp_timeout": LAUNCHED,
    "local_rank": LAUNCHED,
    "log_on_each_node": LAUNCHED,
    "save_on_each_node": LAUNCHED,
    "include_num_input_tokens_seen": LOGGED,
    "log_level": LOGGED,
    "log_level_replica": LOGGED,
    "logging_dir": LOGGED,
    "logging_first_step": LOGGED,
    "logging_nan_inf_filter": LOGGED,
    "logging_strategy": LOGGED,
    "project": LOGGED,
    "run_name": LOGGED,
    "tracker_name": LOGGED,
    "trackio_bucket_id": LOGGED,
    "trackio_space_id": LOGGED,
    "trackio_static_space_id": LOGGED,
    "average_tokens_across_devices": "a step is the mean over records, as in DPO's loss",
    "dataloader_in_order": "the order is drawn from --seed",
    "dataloader_drop_last": "every record of an epoch is used",
    "dataloader_multiprocessing_context": "--dataloader_num_workers is all there is to choose",
    "dataloader_persistent_workers": "--dataloader_num_workers is all there is to choose",
    "dataloader_pin_memory": "--dataloader_num_workers is all there is to choose",
    "dataloader_prefetch_factor": "--dataloader_num_workers is all there is to choose",
    "enable_jit_checkpoint": "SIGTERM ends a run after the step in hand, with a checkpoint",
    "full_determinism": "every draw comes from --seed; use_deterministic_algorithms is PyTorch's",
    "ignore_data_skip": "a resumed run goes on at its record",
    "length_column_name": "texts of one length come together without a column",
    "label_names": "columns are found by the reader (`diffalign data import --help`)",
    "pad_to_multiple_of": "rows are packed without padding; --no_padding_free pads them",
    "precompute_ref_batch_size": "--train_batch_size is used",
    "prior_generation_precision": "it has no use in DPO",
    "remove_unused_columns": "columns are found by the reader (`diffalign data import --help`)",
    "restore_callback_states_from_checkpoint": "a checkpoint has the whole state of a run",
    "run_validation": "--validation_prompts names the prompts to draw every --validation_steps; that script has four of its own",
    "save_strategy": "--checkpointing_steps counts steps",
    "skip_memory_metrics": "--dry_run says how much memory a run takes",
    "torch_empty_cache_steps": "the cache of the GPU is left alone",
    "train_sampling_strategy": "an epoch is shuffled by --seed; --curriculum orders it",
    "use_cache": "training has no use for it",
    "vae_encode_batch_size": "latents are made once, a batch at a time, and kept on disk (--cache)",
}
EPOCHS = "write --max_train_steps, which is epochs * records / (train_batch_size * gradient_accumulation_steps * processes)"
ALPHA = "an adapter has a scale of lora_alpha / rank; write --lora_alpha"
ONE_CYCLE = "no such constant here; the schedules of --lr_scheduler run once, at power 1"
TRUST = "code of a model folder is never run; convert the model"
INSTEAD = {
    "activation_checkpointing": "write --gradient_checkpointing",
    "activation_checkpointing_kwargs": "write --gradient_checkpointing, which has no constants",
    "activation_offloading": "write --gradient_checkpointing or --sequential_candidates to save memory",
    "auto_find_batch_size": "write --train_batch_size; --dry_run says how much memory one takes",
    "bnb_4bit_quant_storage": "write --quantization nf4, which has no constants",
    "bnb_4bit_quant_type": "write --quantization nf4, the only 4-bit type here",
    "data_seed": "write --seed, which seeds all draws",
    "dataset_config": "name the file or folder of the configuration in --dataset_name",
    "dataset_config_name": "name the file or folder of the configuration in --dataset_name",
    "dataset_streaming": "import part of it first: diffalign data import --max_train_samples N",
    "debug": "there is no such switch",
    "deepspeed": f"{OF_A_LAUNCH}; leave it out",
    "discopop_tau": "write --objective {discopop: {tau: VALUE}}",
    "dtype": "write --mixed_precision bf16 or fp16; an adapter's weights stay in float32",
    "f_alpha_divergence_coef": "the divergence is reverse KL",
    "f_divergence_type": "the divergence is reverse KL",
    "fsdp": f"{OF_A_LAUNCH}; leave it out",
    "fsdp_config": f"{OF_A_LAUNCH}; leave it out",
    "gradient_checkpointing_kwargs": "write --gradient_checkpointing, which has no constants",
    "greater_is_better": "write --eval_every and --eval_prompts, which keep best/",
    "hub_token": "a secret on a command line is seen by all; `hf auth login`, or the environment variable HF_TOKEN, gives it to the hub",
    "image_column": "columns are found by the reader; rename yours as `diffalign data import --help` says",
    "caption_column": "columns are found by the reader; rename yours as `diffalign data import --help` says",
    "instance_data_dir": "write --dataset_name FOLDER",
    "is_turbo": "models without many steps of noise are not trained here",
    "label_smoothing_factor": "write --label_smoothing, DPO's own",
    "liger_kernel_config": "write --logits_chunk, which spares the memory of logits",
    "load_best_model_at_end": "write --eval_every and --eval_prompts, which keep best/",
    "lora_modules_to_save": "write --train_method full, or --lora_layers",
    "lora_target_parameters": "write --lora_layers, names of layers",
    "lora_task_type": "the task is that of the model",
    "loss_weights": "write --objective rpo or mapl for a sum of losses (docs/objectives.md)",
    "lr_num_cycles": ONE_CYCLE,
    "lr_power": ONE_CYCLE,
    "lr_scheduler_kwargs": ONE_CYCLE,
    "metric_for_best_model": "write --eval_every and --eval_prompts, which keep best/",
    "model_init_kwargs": "write the key itself: --revision, --mixed_precision, --attention_backend",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "num_train_epochs": EPOCHS,
    "optim_args": "write --adam_beta1, --adam_beta2, --adam_epsilon or --adam_weight_decay",
    "optim_target_modules": "GaLore is not here; write --train_method lora",
    "pad_token": "the tokenizer's own is used",
    "parallelism_config": f"{OF_A_LAUNCH}; leave it out",
    "ref_model_mixup_alpha": "the reference stays; --rounds makes it the model of the round before",
    "ref_model_sync_steps": "the reference stays; --rounds makes it the model of the round before",
    "router_aux_loss_coef": "losses of routers are not trained",
    "save_only_model": "a checkpoint has the whole state; --checkpoints_total_limit 1 keeps one",
    "scale_lr": "write --learning_rate times gradient_accumulation_steps * train_batch_size * processes",
    "sync_ref_model": "the reference stays; --rounds makes it the model of the round before",
    "torch_compile_backend": "write --torch_compile, which has no constants",
    "torch_compile_mode": "write --torch_compile, which has no constants",
    "trust_remote_code": TRUST,
    "use_bnb_nested_quant": "write --quantization nf4, which has no constants",
    "use_cpu": "a GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES=''",
    "use_liger_kernel": "write --logits_chunk, which spares the memory of logits",
    "use_rslora": ALPHA,
    "use_weighting": "write --objective wpo",
}
# Values that ask for nothing, as words; of switches, false.
NEUTRAL = {
    "bnb_4bit_quant_type": ("nf4",),
    "dtype": ("float32", "auto"),
    "f_divergence_type": ("reverse_kl",),
    "fsdp": ("",),
    "image_column": ("image",),
    "label_smoothing_factor": ("0", "0.0"),
    "lora_target_modules": ("all-linear",),
    "lora_task_type": ("CAUSAL_LM",),
    "lr_num_cycles": ("1",),
    "lr_power": ("1", "1.0"),
}
OFF = ("false", "False", "no", "0", "None", "none", "null")


@dataclass(frozen=True, slots=True)
class Program:
    """Another program: what tells its command lines, and what its keys mean that have the same name here."""

    marks: tuple[str, ...]  # flags that this program alone has
    meanings: Mapping[str, str] = field(default_factory=dict)  # of its keys, by their names here
    defaults: Mapping[str, str] = field(default_factory=dict)  # that are others than here, likewise


PROGRAMS = {
    "diffusers' scripts": Program(
        ("no_hflip", "run_validation", "scale_lr", "vae_encode_batch_size", "lr_num_cycles", "lr_power", "tracker_name", "allow_tf32"),
        {
            "cache_dir": "downloads there, latents and prompt embeddings here; the environment variable HF_HOME is for downloads",
            "max_train_samples": "rows chosen at random there, the first rows here",
        },
        {"random_flip": "true", "rank": "4", "learning_rate": "5e-4", "lr_scheduler": "constant", "lr_warmup_steps": "500"},
    ),
    "trl dpo": Program(
        ("model_name_or_path", "per_device_train_batch_size", "use_peft", "lora_r", "lr_scheduler_type", "dataset_train_split"),
        {},
        {
            "train_method": "full",
            "rank": "16",
            "lora_alpha": "32",
            "learning_rate": "1e-6",
            "lr_scheduler": "linear",
            "train_batch_size": "8",
            "gradient_checkpointing": "true",
            "mixed_precision": "bf16",
        },
    ),
}
BETA = "2500 in diffusers' SD1.5 script is 5000 here, and its SDXL script means the same as here; --beta_convention converts"


@dataclass(slots=True)
class Translation:
    """What settings of another program are here."""

    values: dict[str, Any] = field(default_factory=dict)  # keys with values, not yet typed
    notes: list[str] = field(default_factory=list)  # what is done, a line each
    problems: list[str] = field(default_factory=list)  # what to write instead, a line each


def translate(settings: Mapping[str, Any], keys: Iterable[str], *, steps: bool = False) -> Translation:
    """Return what `settings`, flags that are no key here with their values, are here.

    `keys` are the keys that there are; `steps` says whether the number of steps is set, which counts more than that of epochs.

    >>> translate({"max_steps": "10", "fp16": "true"}, []).values
    {'max_train_steps': '10', 'mixed_precision': 'fp16'}
    """
    result, keys = Translation(), list(keys)
    for name, words in sorted(settings.items(), key=lambda item: item[0] != "use_peft"):  # which use_dora makes more exact
        value = words if isinstance(words, str) else " ".join(words)
        if value in NEUTRAL.get(name, ()) or (name in INSTEAD and value in OFF):
            result.notes.append(f"--{name} {value} asks for nothing")
        elif name in RENAMED:
            result.values[RENAMED[name]] = words
            result.notes.append(f"--{name} is --{RENAMED[name]} here")
        elif name in CONVERTED:
            _convert(result, name, value)
        elif name in WITHOUT_EFFECT:
            result.notes.append(f"--{name} has no effect: {WITHOUT_EFFECT[name]}")
        elif name == "num_train_epochs" and (steps or "max_steps" in settings):
            result.notes.append(f"--{name} has no effect: the number of steps is set")
        else:
            result.problems.append(f"--{name} is no flag.{cure(name, keys, flags=True)}")
    return result


def _convert(result: Translation, name: str, value: Any) -> None:
    try:
        converted = CONVERTED[name](value)
    except ConfigError as error:
        result.problems.append(str(error))
        return
    result.values |= converted
    written = " ".join(f"--{key} {constant}" for key, constant in converted.items())
    result.notes.append(f"--{name} {value} is {written} here" if written else f"--{name} {value} asks for nothing")


def cure(name: Any, keys: Iterable[str], *, flags: bool = False) -> str:
    """Return what to write instead of a name that is no key: another program's by its translation, else the nearest key, if one is near.

    >>> cure("max_steps", []), cure("lerning_rate", ["learning_rate"]), cure("frobnicate", ["rank"])
    (' It is `max_train_steps` here.', ' Did you mean `learning_rate`?', '')
    """
    dashes = "--" if flags else ""
    if name in RENAMED:
        return f" It is `{dashes}{RENAMED[name]}` here."
    if name in INSTEAD or name in WITHOUT_EFFECT:
        return f" Of another program: {INSTEAD.get(name) or WITHOUT_EFFECT[name]}."
    if name in CONVERTED:
        return f" Of another program: {CONVERSIONS[name]}."
    near = nearest(str(name), keys)
    return f" Did you mean `{dashes}{near}`?" if near else ""


CONVERSIONS = {
    "attn_implementation": "write `attention_backend: sdpa`",
    "bf16": "write `mixed_precision: bf16`",
    "fp16": "write `mixed_precision: fp16`",
    "ld_alpha": "write `likelihood: {ld_dpo: {alpha: 0.5}}`",
    "load_in_4bit": "write `quantization: nf4`",
    "load_in_8bit": "write `quantization: int8`",
    "loss_type": LOSS,
    "no_hflip": "write `random_flip: false`",
    "optim": OPTIMIZER,
    "use_dora": "write `train_method: dora`",
    "use_peft": "write `train_method: lora`",
}


def differences(written: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Return what the program that a command line comes from means otherwise: a line each.

    Args:
        written: the flags of the line, by their names.
        keys: the keys that it sets, by their names here.
    """
    flags, keys, lines = set(written), set(keys), []
    if "beta_dpo" in flags and "beta_convention" not in flags:
        lines.append(f"--beta_dpo: {BETA}")
    for name, program in PROGRAMS.items():
        if not flags & set(program.marks):
            continue
        lines += [f"--{key}: {text}" for key, text in program.meanings.items() if key in keys]
        if silent := [f"--{key} {value}" for key, value in program.defaults.items() if key not in keys]:
            lines.append(f"where the line says nothing, {name} has {', '.join(silent)}; see --help for what it is here")
    return lines
