"""Causal language models of transformers: loading, what an adapter goes on, and what identifies them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.models.adapter_files import MODEL
from diffalign.models.backbones.folders import resolve
from diffalign.models.backbones.hub import cache_only
from diffalign.models.backbones.mistaken import CONFIG
from diffalign.models.text import forward as lm_forward
from diffalign.models.text.layout import Rows
from diffalign.models.text.likelihood import Answer
from diffalign.models.weights import UNREADABLE, whole

ELSEWHERE = ("_name_or_path", "transformers_version", "architectures")  # of a config: what says nothing of the numbers


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded causal language model with its tokenizer; frozen until an adapter is attached."""

    network: nn.Module
    tokenizer: Any
    name: str
    precision: torch.dtype = torch.float32
    component: str = MODEL

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Return the names of all linear layers but the output head."""
        network: Any = self.network
        head = network.get_output_embeddings()
        linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | Conv1D) and layer is not head]
        return tuple(sorted({name.rsplit(".", 1)[-1] for name in linear}))

    @property
    def device(self) -> torch.device:
        """Return where the network lies."""
        return next(self.network.parameters()).device

    def beta_in_words(self, beta: float) -> str:
        """Return `beta` and its unit."""
        return f"beta {beta:g} on log-probabilities in nats, summed over a completion's tokens unless `likelihood` says otherwise"

    def read(self, model: Any, rows: Rows, *, whole: bool, hidden: bool) -> Answer:
        """Return what `model`, the network or a copy of it, gives for rows, computed under autocast to `precision`."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return lm_forward.read(model, rows, whole=whole, hidden=hidden)

    def park(self) -> None:
        """Do nothing: there is no part that a training step does not use."""

    def fingerprint(self) -> str:
        """Return a hash of config, precision and every weight, which changes when reference scores would; before an adapter is added."""
        network: Any = self.network
        own = {key: value for key, value in network.config.to_dict().items() if key not in ELSEWHERE}
        digest = hashlib.sha256(repr((type(network).__name__, str(self.precision), sorted(own.items(), key=str))).encode())
        for key, value in network.state_dict().items():
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_language_model(
    name: str,
    device: torch.device,
    *,
    precision: torch.dtype = torch.float32,
    full: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    quantization: str | None = None,
    chat_template: str | None = None,
) -> LanguageModel:
    """Return a frozen model on `device` from a folder or hub id: safetensors only, no code of its own.

    Its weights lie in `precision` unless all of them are trained (`full`): what an optimiser moves stays float32. `quantization` is
    nf4, int8 or fp8; `chat_template` is Jinja in place of the tokenizer's own. Raises CheckpointError that names the model.
    """
    options = {"revision": revision, "variant": variant, "dtype": torch.float32 if full else precision}
    if quantization is not None:
        options |= {"quantization_config": quantized(quantization, precision), "device_map": {"": device}}
    options |= {"local_files_only": cache_only(name, CONFIG, revision)}
    try:
        network: Any = whole(AutoModelForCausalLM, resolve(name), **options)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: does not load as a causal language model of transformers ({error})") from error
    tokenizer = load_tokenizer(name, revision, chat_template)
    network = network if quantization is not None else network.to(device)
    return LanguageModel(network.requires_grad_(False).eval(), tokenizer, name, precision)


def load_tokenizer(name: str, revision: str | None = None, chat_template: str | None = None) -> Any:
    """Return the tokenizer of a model folder or hub id, before any weight loads, with another chat template if one is given.

    Raises CheckpointError if there is none.
    """
    offline = cache_only(name, CONFIG, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), revision=revision, local_files_only=offline)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no tokenizer of transformers can be loaded from it ({error})") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def quantized(kind: str, precision: torch.dtype) -> Any:
    """Return how the frozen linear layers are stored, for `from_pretrained`. Raises ConfigError for nf4 without a GPU."""
    if kind == "nf4":
        if not torch.cuda.is_available():
            raise ConfigError("`quantization: nf4` computes on a GPU, and there is none here; int8 and fp8 also run on a CPU")
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=precision
        )
    from torchao import quantization  # pyright: ignore[reportMissingImports]  # optional; its presence was checked with the config

    kinds = {"int8": quantization.Int8WeightOnlyConfig, "fp8": quantization.Float8WeightOnlyConfig}
    return TorchAoConfig(kinds[kind]())
