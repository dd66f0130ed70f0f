"""How a causal model of transformers is called for its hidden states, always through its own forward (a wrapper's hooks run)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from diffalign.text.head import Head
from diffalign.text.layout import Rows
from diffalign.text.likelihood import Answer


def causal_model(model: nn.Module) -> PreTrainedModel:
    """Return the language model inside whatever wraps it. Raises TypeError if there is none."""
    found = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if found is None:
        raise TypeError(f"{type(model).__name__} holds no model of transformers")
    return found


def head_of(model: nn.Module) -> Head | None:
    """Return the output embedding, or None where it is not a plain linear layer (an adapter on it, quantised weights)."""
    layer = causal_model(model).get_output_embeddings()
    if type(layer) is not nn.Linear or not layer.weight.is_floating_point():
        return None
    return Head(layer.weight, layer.bias)


def read(model: Any, rows: Rows, *, whole: bool, hidden: bool) -> Answer:
    """Return hidden states (R, T, D) with their head; logits (R, T, V) if `whole`, or if the head is none that can be read."""
    head = None if whole else head_of(model)
    inputs = {"input_ids": rows.ids, "attention_mask": rows.mask.long(), "use_cache": False}
    if head is None:
        said = model(**inputs, output_hidden_states=hidden)
        return Answer(said.logits, None, said.hidden_states[-1] if hidden else None)
    # The head runs on one position only, and what it says there is thrown away.
    last = model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
    return Answer(last, head, last if hidden else None)
