"""From a config to the parts that train a language model."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch

from diffalign.core.specs import bind
from diffalign.core.types import Reference
from diffalign.data.view import View
from diffalign.methods.build import speed
from diffalign.methods.build.bind import cache_root
from diffalign.methods.checks import check_text
from diffalign.methods.config import TrainConfig
from diffalign.models import adapters
from diffalign.models.reference import AdapterOff, Cached, Frozen, NoReference
from diffalign.models.text import forward as lm_forward
from diffalign.models.text.likelihood import LIKELIHOODS, Aggregation, SequenceLikelihood, Switches
from diffalign.models.text.network import LanguageModel, load_language_model, load_tokenizer
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.reference import precomputed
from diffalign.models.text.template import Template, read_chat_template
from diffalign.models.text.truncation import Limit
from diffalign.objectives import facts

logger = logging.getLogger(__name__)
BATCH = 8  # records whose reference is computed at once


def aggregation(config: TrainConfig) -> Aggregation:
    """Return how token log-probabilities make a score."""
    return bind("likelihood", LIKELIHOODS, config.likelihood or "sum")()


def pairs(config: TrainConfig, view: View) -> TextPairs:
    """Return the training data as token ids; only the tokenizer is loaded."""
    tokenizer = load_tokenizer(config.pretrained_model_name_or_path, config.revision, chat_template(config))
    ((objective, _),) = config.part("objective").items()
    limit = Limit(config.max_length, config.truncation_mode)
    return TextPairs(view, Template(tokenizer), limit, mismatched=facts(objective).mismatched)


def chat_template(config: TrainConfig) -> str | None:
    """Return the Jinja template that stands in for the tokenizer's own."""
    return None if config.chat_template is None else read_chat_template(config.chat_template)


def told(config: TrainConfig, data: TextPairs) -> dict[str, Any]:
    """Return what the use of a result depends on, and what a checkpoint must agree in."""
    same = {name: getattr(config, name) for name in ("likelihood", "max_length", "truncation_mode")}
    return {"conversational": data.conversational, "chat_template": chat_template(config), **same}


def backbone(config: TrainConfig, device: torch.device) -> LanguageModel:
    """Return the loaded model, frozen."""
    return load_language_model(
        config.pretrained_model_name_or_path,
        device,
        precision=speed.DTYPES[config.mixed_precision],
        full=config.tuning == "full",
        revision=config.revision,
        variant=config.variant,
        quantization=config.quantization,
        chat_template=chat_template(config),
    )


def equip(config: TrainConfig, model: LanguageModel) -> None:
    """Attach an adapter to a frozen model, or make every weight trainable; switch on what saves memory and time."""
    network: Any = model.network
    if config.tuning == "full":
        network.requires_grad_(True)
    else:
        torch.manual_seed(config.seed)
        adapters.add_lora(
            network,
            targets=config.lora_layers or model.lora_targets,
            rank=config.rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            dora=config.tuning == "dora",
        )
    if config.gradient_checkpointing:
        # transformers 5.23 has renamed it; the last version for Python 3.10 knows the old name alone.
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.torch_compile:
        network.compile(options={"emulate_precision_casts": True})


def likelihood(config: TrainConfig, model: LanguageModel, longest: int) -> SequenceLikelihood:
    """Return the likelihood with those switches that the model can do, for texts of up to `longest` tokens."""
    wanted = Switches(config.share_prompt, config.padding_free, config.logits_chunk)
    ((objective, _),) = config.part("objective").items()
    needs = frozenset(facts(objective).tokens)
    return SequenceLikelihood(model.read, aggregation(config), lm_forward.able(model.network, wanted, longest), needs)


def reference(config: TrainConfig, model: LanguageModel, device: torch.device) -> Reference:
    """Return what the policy is compared with."""
    if not config.compares:
        return NoReference()
    if config.tuning != "full":
        return AdapterOff(model.network, adapters.disabled)
    return Frozen(backbone(config, device).network)


def parts(config: TrainConfig, view: View, device: torch.device) -> tuple[LanguageModel, SequenceLikelihood, Reference, TextPairs]:
    """Return the model, its likelihood, what it is compared with, and the data. Texts are tokenised before weights load."""
    check_text(config)
    aggregation(config)
    data = pairs(config, view)
    model = backbone(config, device)
    said = likelihood(config, model, data.longest)
    if config.compares and config.precompute_ref_log_probs and said.distributions:
        logger.info("the objective reads the reference's whole distributions, which are not kept: it is run in every step")
    if not config.compares or not config.precompute_ref_log_probs or said.distributions:
        equip(config, model)
        return model, said, reference(config, model, device), data
    # Before anything is attached or trained, the network is its own reference: no second one is ever loaded.
    start = AdapterOff(model.network, lambda _: contextlib.nullcontext())
    data.reference = precomputed(data, said, start, cache_root(config, view), reference_facts(config, model), device, BATCH)
    equip(config, model)
    return model, said, Cached(), data


def reference_facts(config: TrainConfig, model: LanguageModel) -> dict[str, Any]:
    """Return what the reference's log-probabilities hang on besides the tokens."""
    return {"model": model.fingerprint(), "precision": config.mixed_precision, "quantization": config.quantization}
