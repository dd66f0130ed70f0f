"""Commands pasted from diffusers' DPO scripts and from TRL: every flag is a key, is translated, or is answered."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from typing import get_type_hints

import pytest

from diffalign.cli.commands import train
from diffalign.cli.parser import parse
from diffalign.core.values import key_value
from diffalign.methods.config import ALIASES, TrainConfig
from diffalign.methods.other_programs import CONVERSIONS, CONVERTED, INSTEAD, NEUTRAL, PROGRAMS, RENAMED, WITHOUT_EFFECT, cure, translate

KEYS = get_type_hints(TrainConfig)
TABLES = (RENAMED, CONVERTED, WITHOUT_EFFECT, INSTEAD)
# The flags of examples/research_projects/diffusion_dpo/train_diffusion_dpo.py and train_diffusion_dpo_sdxl.py.
DIFFUSERS = shlex.split("""
    pretrained_model_name_or_path pretrained_vae_model_name_or_path revision dataset_name dataset_split_name variant
    run_validation validation_steps max_train_samples output_dir cache_dir seed resolution vae_encode_batch_size no_hflip
    random_crop train_batch_size num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit
    resume_from_checkpoint gradient_accumulation_steps gradient_checkpointing beta_dpo loss_type learning_rate scale_lr
    lr_scheduler lr_warmup_steps lr_num_cycles lr_power dataloader_num_workers use_8bit_adam adam_beta1 adam_beta2
    adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to
    mixed_precision prior_generation_precision local_rank enable_xformers_memory_efficient_attention is_turbo rank tracker_name
""")
# The fields of trl 1.16's ScriptArguments, DPOConfig and ModelConfig.
TRL = shlex.split("""
    dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming ignore_bias_buffers output_dir
    per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
    optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps
    average_tokens_across_devices max_grad_norm label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha
    torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size
    prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics
    batch_eval_metrics save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed
    data_seed use_cpu accelerator_config parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    remove_unused_columns label_names train_sampling_strategy length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train
    do_eval do_predict resume_from_checkpoint local_rank model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout
    dataset_num_proc max_length truncation_mode padding_free pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size
    loss_type loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing beta use_weighting discopop_tau
    activation_offloading sync_ref_model ref_model_mixup_alpha ref_model_sync_steps pad_token model_name_or_path model_revision
    dtype attn_implementation use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters
    lora_modules_to_save lora_task_type use_rslora use_dora load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant
    bnb_4bit_quant_storage
""")


@pytest.mark.parametrize("flags", [DIFFUSERS, TRL], ids=["diffusers", "trl"])
def test_every_flag_of_the_other_programs_is_a_key_or_is_answered(flags):
    assert [flag for flag in flags if flag not in {*KEYS, *ALIASES} and not any(flag in table for table in TABLES)] == []


def test_a_name_stands_in_one_table_and_none_is_a_key():
    names = [name for table in TABLES for name in table]
    assert len(names) == len(set(names))
    assert not set(names) & {*KEYS, *ALIASES}
    assert set(RENAMED.values()) <= set(KEYS)
    assert set(CONVERSIONS) == set(CONVERTED)
    assert set(NEUTRAL) <= {*INSTEAD, *RENAMED}
    for program in PROGRAMS.values():
        assert {*program.meanings, *program.defaults} <= set(KEYS)
        for key, value in program.defaults.items():
            key_value(key, KEYS[key], value)


def parsed(words):
    return parse(train.CONFIG, words, prog="diffalign train", epilog="")


def test_a_pasted_command_of_diffusers_trains_and_says_what_means_something_else(caplog):
    words = shlex.split("""
    --pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 --output_dir=diffusion-dpo --mixed_precision=fp16
    --dataset_name=kashif/pickascore --resolution=512 --train_batch_size=16 --gradient_accumulation_steps=2
    --gradient_checkpointing --use_8bit_adam --rank=8 --learning_rate=1e-5 --report_to=wandb --lr_scheduler=constant
    --lr_warmup_steps=0 --max_train_steps=10000 --checkpointing_steps=2000 --run_validation --validation_steps=200 --seed=0
    --beta_dpo=2500 --max_train_samples=100 --loss_type sigmoid --cache_dir=hub --num_train_epochs=2
""")
    with caplog.at_level(logging.INFO):
        config = parsed(words)
    changed = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    expected = {"beta": 2500.0, "rank": 8, "objective": "dpo", "mixed_precision": "fp16", "use_8bit_adam": True, "max_train_samples": 100}
    assert {name: changed[name] for name in expected} == expected
    text = "\n".join(caplog.messages)
    facts = (
        "5000 here",
        "--beta_convention",
        "the first rows",
        "HF_HOME",
        "--random_flip true",
        "--run_validation",
        "number of steps is set",
    )
    assert [fact for fact in facts if fact not in text] == []


def test_a_pasted_command_of_trl_is_translated():
    words = shlex.split("""
    --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/ultrafeedback_binarized --dataset_train_split train --max_steps
    100 --per_device_train_batch_size 2 --warmup_steps 10 --learning_rate 5.0e-6 --lr_scheduler_type cosine --bf16 --use_peft
    --use_dora --lora_r 32 --lora_alpha 16 --lora_target_modules q_proj v_proj --eval_strategy steps --eval_steps 50 --save_steps
    20 --logging_steps 25 --optim adamw_torch --weight_decay 0.1 --beta 0.1 --loss_type hinge --report_to none --lora_task_type
    CAUSAL_LM --ld_alpha 0.5
""")
    config = parsed(words)
    expected = {
        "pretrained_model_name_or_path": "Qwen/Qwen3-0.6B",
        "dataset_split_name": "train",
        "max_train_steps": 100,
        "train_batch_size": 2,
        "lr_warmup_steps": 10,
        "lr_scheduler": "cosine",
        "mixed_precision": "bf16",
        "train_method": "dora",
        "rank": 32,
        "lora_layers": ["q_proj", "v_proj"],
        "checkpointing_steps": 20,
        "log_every": 25,
        "optimizer": "adamw",
        "adam_weight_decay": 0.1,
        "objective": "hinge",
        "beta": 0.1,
        "likelihood": {"ld_dpo": {"alpha": 0.5}},
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("name", [*INSTEAD, "loss_type", "optim", "attn_implementation"])
def test_what_cannot_be_done_is_answered_with_what_to_write(name):
    result = translate({name: "other"}, KEYS)
    assert not result.values
    assert len(result.problems) == 1
    assert f"--{name}" in result.problems[0]
    assert len(result.problems[0]) > len(name) + 20


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lr", "learning_rate"),
        ("max_steps", "max_train_steps"),
        ("use_dora", "train_method"),
        ("no_hflip", "random_flip"),
        ("Beta", "beta"),
        ("learning-rate", "learning_rate"),
        ("lerning_rate", "learning_rate"),
    ],
)
def test_a_hint_names_what_is_meant(name, near):
    assert near in cure(name, KEYS)


@pytest.mark.parametrize("name", ["fsdp", "frobnicate", "use_color", "x"])
def test_no_hint_is_better_than_a_wrong_one(name):
    assert "Did you mean" not in cure(name, KEYS)
