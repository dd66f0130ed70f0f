"""From a recipe to the parts that train a language model."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch

from diffalign.core.specs import bind
from diffalign.core.types import Reference
from diffalign.data.view import View
from diffalign.methods.builders import speed
from diffalign.methods.builders.common import DTYPES, cache_root, order
from diffalign.methods.checks import check_text
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models import adapters
from diffalign.models.lora_layers import Switch
from diffalign.models.reference import AdapterOff, Cached, Frozen, NoReference, Start
from diffalign.models.text import forward
from diffalign.models.text.likelihood import LIKELIHOODS, Aggregation, SequenceLikelihood, Switches
from diffalign.models.text.network import LanguageModel, load_language_model, load_tokenizer
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.reference import precomputed
from diffalign.models.text.template import Template, read_chat_template
from diffalign.models.text.truncation import Limit

logger = logging.getLogger(__name__)
BATCH = 8  # records whose reference is computed at once


def aggregation(config: TrainConfig) -> Aggregation:
    """Return how token log-probabilities make a score."""
    return bind("likelihood", LIKELIHOODS, config.likelihood or "sum")()


def pairs(config: TrainConfig, recipe: Recipe, view: View, root: Path | None = None) -> TextPairs:
    """Return the training data as token ids, which lie under `root` if they are many; only the tokenizer is loaded."""
    tokenizer = load_tokenizer(config.pretrained_model_name_or_path, config.revision, chat_template(config))
    limit = Limit(config.max_length, config.truncation_mode)
    return TextPairs(view, Template(tokenizer), limit, mismatched=recipe.facts.mismatched, rationales=recipe.rationales, root=root)


def chat_template(config: TrainConfig) -> str | None:
    """Return the Jinja template that stands in for the tokenizer's own."""
    return None if config.chat_template is None else read_chat_template(config.chat_template)


def facts(config: TrainConfig, conversational: bool) -> dict[str, Any]:
    """Return what the use of a result depends on, and what a checkpoint must agree in."""
    same = {name: getattr(config, name) for name in ("likelihood", "max_length", "truncation_mode")}
    return {"conversational": conversational, "chat_template": chat_template(config), **same}


def backbone(config: TrainConfig, device: torch.device, *, full: bool = False) -> LanguageModel:
    """Return the loaded model, frozen."""
    return load_language_model(
        config.pretrained_model_name_or_path,
        device,
        precision=DTYPES[config.mixed_precision],
        full=full,
        revision=config.revision,
        variant=config.variant,
        quantization=config.quantization,
        chat_template=chat_template(config),
    )


def equip(config: TrainConfig, recipe: Recipe, model: LanguageModel) -> None:
    """Attach an adapter to a frozen model, or make every weight trainable; switch on what saves memory and time."""
    network: Any = model.network
    if recipe.tuning == "full":
        network.requires_grad_(True)
    else:
        torch.manual_seed(config.seed)
        adapters.add_lora(
            network,
            targets=config.lora_layers or model.lora_targets,
            rank=config.rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            dora=recipe.tuning == "dora",
        )
    if config.gradient_checkpointing:
        speed.checkpoint_layers(network)
    speed.compile_network(config, network)


def likelihood(config: TrainConfig, recipe: Recipe, model: LanguageModel, longest: int) -> SequenceLikelihood:
    """Return the likelihood with those switches that the model can do, for texts of up to `longest` tokens."""
    wanted = Switches(config.share_prompt, config.padding_free, config.logits_chunk)
    needs = frozenset(recipe.facts.tokens)
    return SequenceLikelihood(model.read, aggregation(config), forward.able(model.network, wanted, longest), needs)


def reference(config: TrainConfig, recipe: Recipe, model: LanguageModel, device: torch.device) -> Reference:
    """Return what the policy is compared with."""
    if not recipe.compares:
        return NoReference()
    if config.reference == "old_policy":
        return Start.of(model.network)
    if recipe.tuning != "full":
        return AdapterOff(model.network, Switch(model.network))
    return Frozen(backbone(config, device, full=True).network)


def parts(config: TrainConfig, recipe: Recipe, view: View, device: torch.device) -> Parts:
    """Return the parts of a run. Texts are tokenised before weights load."""
    check_text(config, recipe)
    data = pairs(config, recipe, view, cache_root(config, view))
    model = backbone(config, device, full=recipe.tuning == "full")
    own_likelihood = likelihood(config, recipe, model, data.longest)
    precomputes = recipe.compares and config.precompute_ref_log_probs and config.reference != "old_policy"
    if precomputes and own_likelihood.distributions:
        logger.info("the objective reads the reference's whole distributions, which are not kept: it is run in every step")
    if precomputes and not own_likelihood.distributions:
        # Before anything is attached or trained, the network is its own reference: no second one is ever loaded.
        start = AdapterOff(model.network, contextlib.nullcontext)
        depends_on = reference_facts(config, model)
        data.reference = precomputed(data, own_likelihood, start, cache_root(config, view), depends_on, device, BATCH)
        compared: Reference = Cached()
        equip(config, recipe, model)
    else:
        equip(config, recipe, model)
        compared = reference(config, recipe, model, device)
    table, index = view.table.fingerprint, order(config, view)
    return Parts("text", recipe, model, own_likelihood, compared, data, table, index, facts=facts(config, data.conversational))


def reference_facts(config: TrainConfig, model: LanguageModel) -> dict[str, Any]:
    """Return what the reference's log-probabilities hang on besides the tokens."""
    return {"model": model.fingerprint(), "precision": config.mixed_precision, "quantization": config.quantization}
