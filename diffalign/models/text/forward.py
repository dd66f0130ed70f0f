"""How a causal model of transformers is called for its hidden states, always through its own forward (a wrapper's hooks run)."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffalign.core.types import TextBatch
from diffalign.models.reference import eval_mode
from diffalign.models.text import segments
from diffalign.models.text.head import Head
from diffalign.models.text.layout import Rows
from diffalign.models.text.likelihood import Answer, SequenceLikelihood, Switches

logger = logging.getLogger(__name__)
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}  # nats, of the mean over probed tokens; half precision rounds more
HALF_TOLERANCE = 0.1


def causal_model(model: nn.Module) -> PreTrainedModel:
    """Return the language model inside whatever wraps it. Raises TypeError if there is none."""
    network = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if network is None:
        raise TypeError(f"{type(model).__name__} holds no model of transformers")
    return network


def head_of(model: nn.Module) -> Head | None:
    """Return the output embedding, or None where it is not a plain linear layer (an adapter on it, quantised weights)."""
    layer = causal_model(model).get_output_embeddings()
    if type(layer) is not nn.Linear or not layer.weight.is_floating_point():
        return None
    kind = layer.weight.device.type
    return Head(layer.weight, layer.bias, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)


def read(model: Any, rows: Rows, *, whole: bool, hidden: bool) -> Answer:
    """Return hidden states (R, T, D) with their head; logits (R, T, V) if `whole`, or if the head is none that can be read."""
    head, inputs = None if whole else head_of(model), _inputs(model, rows)
    if head is None:
        output = model(**inputs, output_hidden_states=hidden)
        return Answer(output.logits, None, output.hidden_states[-1] if hidden else None)
    # The head runs on one position only, and what it says there is thrown away.
    last = model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
    return Answer(last, head, last if hidden else None)


def _inputs(model: nn.Module, rows: Rows) -> dict[str, Any]:
    """Return the model's keywords for rows; plain ones are what every causal model knows."""
    inputs: dict[str, Any] = {"input_ids": rows.ids, "use_cache": False}
    if rows.segments is None:
        return inputs | {"attention_mask": rows.mask.long()}
    segments.switch_on(causal_model(model))
    # A mask with four axes is taken for a finished one, so that no mask of a row's length squared is built.
    unused = rows.mask.new_ones(1, 1, 1, 1)
    return inputs | {"attention_mask": unused, "position_ids": rows.positions, "segments": rows.segments}


def able(model: nn.Module, wanted: Switches, longest: int) -> Switches:
    """Return those of the `wanted` switches that give the model's own log-probabilities, for texts of up to `longest` tokens.

    Tried on a few random tokens; what is switched off is logged with the reason.
    """
    plain = Switches(share_prompt=False, padding_free=False, logits_chunk=0)
    batch, switches = _probe(causal_model(model)), plain
    with torch.no_grad(), eval_mode(model):
        right = _said(model, batch, plain)
        if wanted.logits_chunk and _agrees(model, batch, "reading its head apart", replace(plain, logits_chunk=wanted.logits_chunk), right):
            switches = replace(switches, logits_chunk=wanted.logits_chunk)
        if wanted.share_prompt or wanted.padding_free:
            both = replace(switches, share_prompt=wanted.share_prompt, padding_free=wanted.padding_free)
            if _agrees(model, batch, "shared prompts and rows without padding", both, right, longest):
                switches = both
    return switches


def _probe(model: PreTrainedModel) -> TextBatch:
    embedding: Any = model.get_input_embeddings()
    vocabulary, device = len(embedding.weight), model.device
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> Tensor:
        return torch.randint(vocabulary, (length,), generator=draw).to(device)

    prompts = [text(length) for length in (5, 3)]
    completions = tuple(tuple(text(length) for length in own) for own in ((4, 6), (7, 2)))
    return TextBatch(tuple((ids, ids) for ids in prompts), completions, torch.ones(2, device=device))


def _said(model: nn.Module, batch: TextBatch, switches: Switches) -> Tensor:
    return SequenceLikelihood(read, switches=switches).score(model, batch).tokens


def _agrees(model: nn.Module, batch: TextBatch, what: str, switches: Switches, right: Tensor, longest: int = 0) -> bool:
    own = causal_model(model)
    before = str(own.config._attn_implementation)
    try:
        with segments.windows_seen() as windows:
            error = (_said(model, batch, switches) - right).abs().mean().item()
        limits = [limit for limit in (*windows, getattr(own.config, "attention_chunk_size", None)) if limit is not None]
        if longest and not windows:
            reason = "its layers do not attend through transformers' interface"
        elif longest and min(limits, default=longest) < longest:
            reason = f"its attention has a window of {min(limits)} tokens, and texts have up to {longest}"
        elif not error <= TOLERANCE.get(own.dtype, HALF_TOLERANCE):
            reason = f"log-probabilities of random tokens are off by {error:.2g} nats"
        else:
            return True
    except Exception as problem:  # models stumble in their own ways; whatever it is, they can be read the plain way
        reason = str(problem).split("\n", 1)[0]
    if own.config._attn_implementation != before:
        own.set_attn_implementation(before)
    logger.warning("%s: %s is switched off: %s", own.name_or_path or type(own).__name__, what, reason)
    return False
