"""Causal language models of transformers: loading, what an adapter goes on, and what identifies them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from diffalign.backbones import lm_forward
from diffalign.backbones.folders import resolve
from diffalign.errors import CheckpointError, ConfigError
from diffalign.text.layout import Rows
from diffalign.text.likelihood import Answer

MODEL = "model"


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
        """Return a hash of precision and frozen weights (names, shapes, first numbers), which changes when reference scores would."""
        digest = hashlib.sha256(repr((type(self.network).__name__, str(self.precision))).encode())
        for key, value in self.network.state_dict().items():
            if ".lora_" not in key:
                digest.update(f"{key.replace('.base_layer', '')}{tuple(value.shape)}".encode())
                digest.update(value.flatten()[:256].float().cpu().numpy().tobytes())
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
) -> LanguageModel:
    """Return a frozen model on `device` from a folder or hub id: safetensors only, no code of its own.

    Its weights lie in `precision` unless all of them are trained (`full`): what an optimiser moves stays float32. `quantization` is
    nf4, int8 or fp8. Raises CheckpointError that names the model if it does not load.
    """
    options = {"revision": revision, "variant": variant, "use_safetensors": True, "dtype": torch.float32 if full else precision}
    if quantization is not None:
        options |= {"quantization_config": quantized(quantization, precision), "device_map": {"": device}}
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(resolve(name), **options)
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: does not load as a causal language model of transformers ({error})") from error
    network = network if quantization is not None else network.to(device)
    return LanguageModel(network.requires_grad_(False).eval(), tokenizer, name, precision)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a model folder or hub id, before any weight loads. Raises CheckpointError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(resolve(name), revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: no tokenizer of transformers can be loaded from it ({error})") from error


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
