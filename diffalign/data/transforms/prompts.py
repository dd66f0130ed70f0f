"""Transforms of the prompt."""

from __future__ import annotations

from dataclasses import replace

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Message, Record
from diffalign.data.transforms.base import labelled_pair, require_oriented, score_of
from diffalign.data.transforms.candidates import invert

GOAL = "A careful judge should give the answer {goal} of 10 points."


def reward_conditioned(record: Record, *, score: str, template: str = GOAL) -> tuple[Record, ...]:
    """Return two pairs whose prompts ask for a score: one for the preferred candidate's score, one, inverted, for the dispreferred's.

    Reward-augmented data (2410.08067, released code). The goal is a system message in a conversation, and precedes a plain prompt. The
    template is our own; a model that was trained so is asked for the highest score. Pairs whose scores do not agree with the preference
    are dropped. Raises ConfigError for a template without {goal}, RecordError if the first candidate is not the preferred one or the
    candidates have different prompts.
    """
    if "{goal}" not in template:
        raise ConfigError(f"reward_conditioned: template is {template!r}; expected a text with {{goal}} in it")
    pair = require_oriented(labelled_pair(record)[0], "reward_conditioned")
    if any(c.prompt is not None for c in pair.candidates):
        raise RecordError(f"{record.source}: the candidates have prompts of their own; `reward_conditioned` changes the record's")
    high, low = (score_of(pair, c, score) for c in pair.candidates)
    if not high > low:
        return ()
    variants = (f"{record.id}/high", high, pair), (f"{record.id}/low", low, *invert(pair))
    return tuple(replace(_with_goal(variant, template.replace("{goal}", f"{goal:g}")), id=name) for name, goal, variant in variants)


def _with_goal(record: Record, goal: str) -> Record:
    if not record.messages:
        return replace(record, prompt=f"{goal}\n\n{record.prompt}")
    first, *rest = record.messages
    if first.role == "system":
        return replace(record, messages=(Message("system", f"{first.content}\n\n{goal}"), *rest))
    return replace(record, messages=(Message("system", goal), first, *rest))
