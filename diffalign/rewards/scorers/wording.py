"""What a vision-language model is asked about one picture or two, and how its answer is read.

The questions are in our own words. `visionprefer` has the four aspects of VisionPrefer (2404.15100), reconstructed: its text and its
marks 1 to 5 are ours. `unified_reward` has the criteria of UnifiedReward's released templates (2503.05236; its criteria, marks from 1 to 5
after "Final Score:", "Image 1 is better."), reconstructed in other words: for the very words that its models were trained with, give the
text of its repository as a file. How an answer is read does not depend on the template.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from diffalign.core.errors import ConfigError, check_name

Protocol = Literal["pointwise", "pairwise"]
Form = Literal["json", "logprobs"]
ASPECTS = {
    "alignment": "does the picture show all that the prompt names, with the right counts, attributes and relations, and nothing else",
    "quality": "is it technically sound: sharp, clean, without artefacts, glitches or misshapen parts",
    "aesthetics": "is it pleasing to look at: composition, light, colours",
    "safety": "is it free of violence, nudity, hate and other harm",
    "prompt_following": "does the picture show what the prompt describes",
    "aesthetic": "are composition, colours and style pleasing",
    "fidelity": "does it look like something that can be, without wrong shapes, limbs, textures or letters",
    "harmlessness": "is it free of nudity, violence, hate and other content that may do harm",
}
"""The aspects that have a name, and the question that each is."""
LONGEST = 20_000  # letters of an answer that are read
LEAST_MASS = 0.5  # of the first token's probability that must lie on the answers, for it to be one
REFUSAL = re.compile(r"^\W*(sorry|(i['\u2019]m|i am) (sorry|unable)|i (can['\u2019]t|cannot|can not|won['\u2019]t))\b", re.I)
LETTERS = {"A": 1.0, "B": 0.0}  # of a pairwise answer by its first token
BETTER = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Template:
    """A question about a picture and one about two, with places for {prompt}, {aspects}, {low} and {high}; marks from low to high."""

    pointwise: str
    pairwise: str
    aspects: tuple[str, ...]
    low: int
    high: int
    free: bool = False  # whether the text itself says how to answer


OURS = Template(
    'A picture was made for a prompt.\nPrompt: "{prompt}"\n'
    "Give the picture a mark from {low} (worst) to {high} (best) for each of:\n{aspects}",
    'Two pictures, the first and the second, were made for one prompt.\nPrompt: "{prompt}"\n'
    "Which picture is better, considering:\n{aspects}",
    ("alignment", "quality"),
    1,
    10,
)
TEMPLATES = {
    "aspects": OURS,
    "visionprefer": Template(OURS.pointwise, OURS.pairwise, ("prompt_following", "aesthetic", "fidelity", "harmlessness"), 1, 5),
    "unified_reward": Template(
        "Here are a caption and a picture that was generated from it. Judge two things:\n1. Alignment: how well objects, attributes and "
        "relations of the caption are shown.\n2. Overall quality: clarity, detail, colours and appeal.\nList the elements of the caption "
        "as 'element (type): value', value 1 if shown and 0 if not, and end with a mark from {low} to {high} after 'Final Score:'.\n"
        "Text Caption: [{prompt}]",
        "Here are a caption and two pictures that were generated from it. Compare them in two things:\n1. Alignment: how well objects, "
        "attributes and relations of the caption are shown.\n2. Overall quality: clarity, detail, colours and appeal.\nEnd with "
        '"Image 1 is better.", "Image 2 is better." or "Both images are equally good."\nText Caption: [{prompt}]',
        (),
        1,
        5,
        free=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered: its text, whether it would not answer, the log-probabilities of the likeliest first tokens, and whether it
    was cut off at `max_tokens`."""

    text: str
    refused: bool = False
    tokens: Mapping[str, float] | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Wording:
    """A protocol's question, and the reading of its answers."""

    template: Template
    protocol: Protocol
    form: Form
    aspects: tuple[str, ...]

    @property
    def scale(self) -> str:
        """Return what the number means."""
        about = f" in {', '.join(self.aspects)}" if self.aspects else ""
        if self.protocol == "pairwise":
            return f"share in [0, 1] of the prompt's other images that it is better than{about}, by verdicts in both orders"
        kind = "mark expected from the chances of each" if self.form == "logprobs" else "mean mark"
        return f"{kind}, {self.template.low} to {self.template.high}{about}"

    def question(self, prompt: str) -> str:
        """Return the text that goes with the picture, or with the two."""
        template = self.template
        listed = "\n".join(f"- {aspect}: {ASPECTS.get(aspect, f'how good is its {aspect}')}?" for aspect in self.aspects)
        text = template.pointwise if self.protocol == "pointwise" else template.pairwise
        values = {"{prompt}": prompt, "{aspects}": listed, "{low}": str(template.low), "{high}": str(template.high)}
        text = re.sub("|".join(map(re.escape, values)), lambda match: values[match[0]], text)
        return text if template.free and self.form == "json" else f"{text}\n{self._ending()}"

    def _ending(self) -> str:
        if self.form == "logprobs":
            if self.protocol == "pairwise":
                return "Answer with one letter: A if the first is better, B if the second is."
            return f"Answer with one whole number from {self.template.low} to {self.template.high}, the overall mark, and nothing else."
        if self.protocol == "pairwise":
            return 'Answer with JSON alone: {"better": "first"}, {"better": "second"}, or {"better": "tie"}.'
        keys = ", ".join(f'"{aspect}": MARK' for aspect in self.aspects)
        return f"Answer with JSON alone: {{{keys}}}."

    def read(self, reply: Reply) -> float | None:
        """Return the mark, or the chance in [0, 1] that the first picture is better; None for an answer that holds neither.

        Words that were cut off hold neither: what they weigh up halfway is no verdict, and `Final Score: 1` may have been a 10.
        """
        if self.form == "logprobs":
            return self._by_tokens(reply.tokens or {})
        if reply.cut:
            return None
        text = reply.text[-LONGEST:]
        return verdict_in(text) if self.protocol == "pairwise" else self._mark(text)

    def _by_tokens(self, tokens: Mapping[str, float]) -> float | None:
        """Return what is expected of the answers, by their chances; None where less than half of the probability lies on them."""
        low, high = self.template.low, self.template.high
        values = LETTERS if self.protocol == "pairwise" else {str(mark): float(mark) for mark in range(low, high + 1)}
        chances = dict.fromkeys(values, 0.0)
        for token, log_prob in tokens.items():
            if (word := token.strip()) in chances and math.isfinite(log_prob):
                chances[word] += math.exp(log_prob)
        mass = sum(chances.values())
        return sum(values[word] * chance for word, chance in chances.items()) / mass if mass >= LEAST_MASS else None

    def _mark(self, text: str) -> float | None:
        """Return the mean mark of a JSON object, or the last `Score: number`, or a number that is the whole answer."""
        low, high = self.template.low, self.template.high
        if self.aspects and (marks := json_in(text, self.aspects)) is not None:
            values = [marks[aspect] for aspect in self.aspects]
            fit = all(isinstance(mark, int | float) and not isinstance(mark, bool) and low <= mark <= high for mark in values)
            return sum(values) / len(values) if fit else None
        numbers = re.findall(r"(?i)\bscore\W{0,4}\s*(-?\d+(?:\.\d+)?)(?![\d.]*\d)", text) or re.findall(r"^\s*(-?\d+(?:\.\d+)?)\s*$", text)
        return float(numbers[-1]) if numbers and low <= float(numbers[-1]) <= high else None


def verdict_in(text: str) -> float | None:
    """Return 1 where an answer prefers the first picture, 0 where the second, one half for a tie; None where it says none of them.

    >>> verdict_in('{"better": "second"}'), verdict_in("Image 1 is better."), verdict_in("Both images are equally good."), verdict_in("fox")
    (0.0, 1.0, 0.5, None)
    """
    if (answer := json_in(text, ("better",))) is not None:
        word = answer["better"]
        return BETTER.get(word.strip().lower()) if isinstance(word, str) else None
    verdicts = re.findall(r"(?i)image\s*([12])\s+is\s+better|(both\s+images\s+are\s+equally)", text)
    if not verdicts:
        return None
    number, _ = verdicts[-1]
    return {"1": 1.0, "2": 0.0}.get(number, 0.5)


def json_in(text: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """Return the last JSON object of a text that has all `keys`, None where there is none; NaN and Infinity are no JSON."""
    decoder, place, last = json.JSONDecoder(parse_constant=_refuse), 0, None
    for start in (match.start() for match in re.finditer(r"\{", text)):
        if start < place:
            continue
        try:
            value, place = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and all(key in value for key in keys):
            last = value
    return last


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def wording(*, template: str, protocol: Protocol, answer: Form, aspects: Sequence[str] | None) -> Wording:
    """Return what is asked. Raises ConfigError for a template that is none, and for aspects that it cannot ask for.

    Args:
        template: a name of `TEMPLATES`, or a text file with {prompt} in it, whose text itself says how to answer: a mark from 1 to 10 as
            `Score: 7`, or a verdict as "Image 1 is better.", or JSON with the aspects, or with `better`.
        protocol: a mark for each picture, or a verdict on two.
        answer: in words, or by the probabilities of the first token.
        aspects: what is judged, by the names of `ASPECTS` or in a word of your own; the template's if None.
    """
    words = _template(template)
    named = words.aspects if aspects is None else tuple([aspects] if isinstance(aspects, str) else aspects)
    if bad := [aspect for aspect in named if not isinstance(aspect, str) or not re.fullmatch(r"\w[\w -]*", aspect)]:
        raise ConfigError(f"scorer `vlm`: among `aspects` is {bad[0]!r}; expected words such as {', '.join(list(ASPECTS)[:4])}")
    if aspects is not None and words.free and "{aspects}" not in words.pointwise + words.pairwise:
        raise ConfigError(f"scorer `vlm`: template `{template}` names what it judges; leave out `aspects`, or write {{aspects}} into it")
    if answer == "logprobs" and protocol == "pointwise":  # a mark must be one token
        words = Template(words.pointwise, words.pairwise, words.aspects, 1, 5, free=words.free)
    if not named and not words.free:
        raise ConfigError("scorer `vlm`: `aspects` is empty; expected at least one")
    return Wording(words, protocol, answer, named)


def _template(name: str) -> Template:
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".txt"):
        check_name("template", name, [*TEMPLATES, "FILE.txt"])
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"scorer `vlm`: `template` {name} cannot be read ({type(error).__name__})") from error
    if "{prompt}" not in text:
        raise ConfigError(f"scorer `vlm`: {name} has no {{prompt}}, where the prompt of a picture is to stand")
    return Template(text, text, (), 1, 10, free=True)
