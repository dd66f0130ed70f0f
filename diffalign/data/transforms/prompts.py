"""Transforms of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Message, Record
from diffalign.data.transforms.base import labelled_pair, require_oriented, score_of
from diffalign.data.transforms.candidates import invert

SHOT = "Prompt: {prompt}\nPreferred: {preferred}\nNot preferred: {dispreferred}"
GOAL = "A careful judge should give the answer {goal} of 10 points."


def reward_conditioned(
    record: Record, *, score: str, template: str = GOAL, low: float | None = None, high: float | None = None
) -> tuple[Record, ...]:
    """Return two pairs whose prompts ask for a score: one for the preferred candidate's score, one, inverted, for the dispreferred's.

    Reward-augmented data (2410.08067, released code). The goal is a system message in a conversation, and precedes a plain prompt. The
    template is our own; a model that was trained so is asked for the highest score. Scores of `low` to `high` are written as 0 to 10, to
    one decimal, so that cosines and logits read as points, too; without these as they are. Pairs whose scores do not agree with the
    preference are dropped. Raises ConfigError for a template without {goal} and for half a range, RecordError if the first candidate is
    not the preferred one or the candidates have different prompts.
    """
    if "{goal}" not in template:
        raise ConfigError(f"reward_conditioned: template is {template!r}; expected a text with {{goal}} in it")
    if (low is None) != (high is None) or (low is not None and high is not None and not high > low):
        raise ConfigError(f"reward_conditioned: low is {low} and high {high}; expected both, high above low, or neither")
    pair = require_oriented(labelled_pair(record)[0], "reward_conditioned")
    if any(c.prompt is not None for c in pair.candidates):
        raise RecordError(f"{record.source}: the candidates have prompts of their own; `reward_conditioned` changes the record's")
    best, worst = (score_of(pair, c, score) for c in pair.candidates)
    if not best > worst:
        return ()
    variants = (f"{record.id}/high", best, pair), (f"{record.id}/low", worst, *invert(pair))
    return tuple(
        replace(_preceded(variant, template.replace("{goal}", _points(goal, low, high))), id=name) for name, goal, variant in variants
    )


def fewshot_context(
    record: Record, *, shots: int = 4, seed: int = 0, template: str = SHOT, contexts: Mapping[tuple[str, str], str] | None = None
) -> tuple[Record, ...]:
    """Return the record with `shots` other votes of its user in front of its prompt; drop it if there are fewer.

    FSPO (2502.19312), for texts: never a vote under the same prompt, drawn by `seed` and record. A config leaves `contexts` out, the votes
    as text by the record's source and id: they are made of the records that the transforms before leave (`data.fewshot`), and are a
    system message in a conversation. The template, of one vote, is our own. Raises ConfigError for constants that cannot be meant.
    """
    if shots < 1 or seed < 0:
        raise ConfigError(f"fewshot_context: shots is {shots} and seed {seed}; expected at least 1, and zero or more")
    if missing := [name for name in ("{prompt}", "{preferred}", "{dispreferred}") if name not in template]:
        raise ConfigError(f"fewshot_context: template is {template!r}; expected a text with {missing[0]} in it")
    try:
        template.format(prompt="", preferred="", dispreferred="")
    except (LookupError, ValueError) as error:
        raise ConfigError(f"fewshot_context: template is {template!r}; expected other braces to be doubled, as {{{{ and }}}}") from error
    if any(candidate.prompt is not None for candidate in record.candidates):
        raise RecordError(f"{record.source}: the candidates have prompts of their own; `fewshot_context` changes the record's")
    context = (contexts or {}).get((record.source, record.id))
    return () if context is None else (_preceded(record, context),)


def _points(score: float, low: float | None, high: float | None) -> str:
    """Return a score in words, of 10 where it has a range; what lies outside of that is 0 or 10."""
    if low is None or high is None:
        return f"{score:g}"
    return f"{round(10.0 * min(max((score - low) / (high - low), 0.0), 1.0), 1):g}"


def _preceded(record: Record, text: str) -> Record:
    """Return the record with a text in front of its prompt, in a conversation as system message."""
    if not record.messages:
        return replace(record, prompt=f"{text}\n\n{record.prompt}")
    first, *rest = record.messages
    if first.role == "system":
        return replace(record, messages=(Message("system", f"{first.content}\n\n{text}"), *rest))
    return replace(record, messages=(Message("system", text), first, *rest))
