"""Memory and speed of the denoiser: attention backend, memory format, gradient checkpointing, compilation, quantised base weights."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, SD3Transformer2DModel, TorchAoConfig
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import attention_backend
from torch.utils.checkpoint import checkpoint

from diffalign.core.errors import ConfigError
from diffalign.methods.builders.common import DTYPES
from diffalign.methods.builders.residual import widen
from diffalign.methods.config import TrainConfig
from diffalign.models.users import branch


def quantization_config(config: TrainConfig) -> BitsAndBytesConfig | TorchAoConfig | None:
    """Return how the denoiser's linear layers are stored, for its `from_pretrained`; None for as they are.

    Raises ConfigError for nf4 without a GPU.
    """
    if config.quantization is None:
        return None
    if config.quantization == "nf4":
        if not torch.cuda.is_available():
            raise ConfigError("`quantization: nf4` computes on a GPU, and there is none here; int8 and fp8 also run on a CPU")
        compute = DTYPES[config.mixed_precision]
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
        )
    from torchao import quantization  # pyright: ignore[reportMissingImports]  # optional; its presence was checked with the config

    kinds = {"int8": quantization.Int8WeightOnlyConfig, "fp8": quantization.Float8WeightOnlyConfig}
    return TorchAoConfig(kinds[config.quantization]())


def apply(config: TrainConfig, denoiser: Any, *, kernels: bool = True) -> None:
    """Switch on what `config` asks of a denoiser that has its adapter. Raises ConfigError for what this network cannot do.

    Without `kernels`, attention is only checked, and nothing is compiled.
    """
    if config.attention_name is not None:
        _attend(denoiser, config.attention_name, kernels)
    if config.residual_in_fp32:
        widen(denoiser)
    if config.channels_last:
        denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # diffusers hides torch's keyword
    if config.gradient_checkpointing:
        # Given here, for diffusers' own makes torch.compile warn of a cached function in it.
        denoiser.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=False))
    if kernels:
        compile_network(config, denoiser)


def compile_network(config: TrainConfig, network: Any) -> None:
    """Compile a network, or its repeated blocks by themselves, where the config asks for it.

    In place: names of weights, and the adapter's switch, stay. Of blocks alike the compiler's result is kept, within a run and on disk
    (TORCHINDUCTOR_CACHE_DIR). The compiler would round fused operations once instead of each time, and otherwise in the policy than in the
    reference: in bfloat16 by more than beta allows.
    """
    if not config.torch_compile:
        return
    parts, how = [network], dict[str, Any](options={"emulate_precision_casts": True})
    if config.torch_compile == "regional":  # diffusers names the blocks, or else, as transformers, what is not split over devices
        names = getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", None) or ()
        parts = [layer for layer in network.modules() if type(layer).__name__ in names]
        how["recompile_limit"] = 64  # a UNet's blocks are of several widths and sizes, with an adapter and without
        if not parts:
            raise ConfigError(f"`torch_compile` is regional, and a {type(network).__name__} names no repeated blocks; expected true")
    for part in parts:
        part.compile(**how)


def checkpoint_layers(network: Any) -> None:
    """Switch on gradient checkpointing in a network of transformers."""
    # transformers 5.23 has renamed it; the last version for Python 3.10 knows the old name alone.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _attend(denoiser: Any, name: str, kernels: bool) -> None:
    """Set an attention backend of diffusers. UNets, PixArt and SD3 do not ask its dispatcher: they call PyTorch's own, or xformers."""
    dispatched = any(isinstance(layer, AttentionModuleMixin) for layer in denoiser.modules())
    if not dispatched and name not in ("native", "xformers"):
        raise ConfigError(
            f"`attention_backend` is {name!r}, and a {type(denoiser).__name__} calls PyTorch's scaled_dot_product_attention itself, "
            "which takes flash kernels where they fit; expected sdpa or xformers"
        )
    if name == "xformers" and isinstance(denoiser, SD3Transformer2DModel) and branch.attached(denoiser):
        # diffusers knows no processor that is both, and would put one without the branch in its place.
        raise ConfigError("`attention_backend` xformers leaves out the user branch of an SD3Transformer2DModel; expected sdpa")
    if not kernels:
        return
    try:
        if dispatched:
            with attention_backend():  # which puts back the process-wide default that the next line moves as well
                denoiser.set_attention_backend(name)
        elif name == "xformers":
            denoiser.enable_xformers_memory_efficient_attention()
    except (RuntimeError, ValueError, ModuleNotFoundError) as error:
        raise ConfigError(f"`attention_backend` {name}: {error}") from error
