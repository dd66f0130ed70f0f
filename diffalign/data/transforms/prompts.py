"""Transforms of the prompt."""

from __future__ import annotations

from dataclasses import replace

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Message, Record
from diffalign.data.transforms.base import labelled, oriented, score_of
from diffalign.data.transforms.candidates import invert

GOAL = "A careful judge should give the answer {goal} of 10 points."


def reward_conditioned(record: Record, *, score: str, template: str = GOAL) -> tuple[Record, ...]:
    """Return the pair twice, each with a goal in its prompt: the preferred candidate's score, and the other's with the pair turned round.

    Reward-augmented data (2410.08067, released code): the goal is a system message of a conversation, and stands before a plain prompt.
    The template is ours; after training, ask for the highest score. Pairs whose score does not agree with the preference are dropped.
    Raises ConfigError for a template without {goal}, RecordError where the first candidate is not the preferred one, or candidates have
    prompts of their own.
    """
    if "{goal}" not in template:
        raise ConfigError(f"reward_conditioned: template is {template!r}; expected a text with {{goal}} in it")
    known = oriented(labelled(record)[0], "reward_conditioned")
    if any(c.prompt is not None for c in known.candidates):
        raise RecordError(f"{record.source}: the candidates have prompts of their own; `reward_conditioned` changes the record's")
    high, low = (score_of(known, c, score) for c in known.candidates)
    if not high > low:
        return ()
    goals = (f"{record.id}/high", high, known), (f"{record.id}/low", low, *invert(known))
    return tuple(replace(_told(own, template.replace("{goal}", f"{goal:g}")), id=name) for name, goal, own in goals)


def _told(record: Record, goal: str) -> Record:
    if not record.messages:
        return replace(record, prompt=f"{goal}\n\n{record.prompt}")
    first, *rest = record.messages
    own = (Message("system", f"{first.content}\n\n{goal}"), *rest) if first.role == "system" else (Message("system", goal), first, *rest)
    return replace(record, messages=own)
