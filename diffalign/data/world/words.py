"""What somebody seems to like, in words: the attributes of the embedded world's pictures that go with liking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffalign.data.world.captions import OPTIONAL, PLACES
from diffalign.data.world.scenes import ATTRIBUTES

CLEAR = 2.0  # standard errors between the pictures with an attribute and those without, from which it is named
MOST = 3  # attributes that are named of each sign
PHRASES = {"size": "{} shapes", "color": "{}", "background": "a {} background"}


def leanings(attributes: Sequence[Mapping[str, str]], liking: Sequence[float], prompts: Sequence[str]) -> dict[str, float]:
    """Return {phrase: how many standard errors better the pictures are liked that show it than those of the same prompts that do not}.

    Args:
        attributes: of each picture, as `judge.read` gives them; what could not be recognised is missing.
        liking: how much each picture is liked, on any scale.
        prompts: of each picture; only pictures of one prompt are compared.

    Left out are attributes that fewer than two pictures show, or that fewer than two lack.
    """
    places = [np.flatnonzero([other == prompt for other in prompts]) for prompt in dict.fromkeys(prompts)]
    likes = np.asarray(liking, dtype=float)
    for place in places:
        likes[place] -= likes[place].mean()
    leaning = {}
    for name in OPTIONAL:
        for value in ATTRIBUTES[name]:
            shows = np.array([shown.get(name) == value for shown in attributes], dtype=float)
            for place in places:
                shows[place] -= shows[place].mean()
            if (shows > 0).sum() >= 2 and (shows < 0).sum() >= 2:
                leaning[_phrase(name, value)] = _errors(shows, likes, len(likes) - len(places) - 1)
    return leaning


def in_words(leaning: Mapping[str, float]) -> str:
    """Return a sentence on what is liked and what is liked less, strongest first; "" where nothing is clear."""
    liked = sorted((phrase for phrase, errors in leaning.items() if errors > CLEAR), key=lambda phrase: -leaning[phrase])
    less = sorted((phrase for phrase, errors in leaning.items() if errors < -CLEAR), key=lambda phrase: leaning[phrase])
    parts = [f"{head} {', '.join(phrases[:MOST])}." for head, phrases in (("You seem to like", liked), ("You like less:", less)) if phrases]
    return " ".join(parts)


def _errors(shows: np.ndarray, likes: np.ndarray, freedom: int) -> float:
    """Return the slope of liking over showing in its standard errors, both centred, with so many degrees of freedom."""
    slope = shows @ likes / (shows @ shows)
    rest = likes - slope * shows
    error = np.sqrt(rest @ rest / max(freedom, 1) / (shows @ shows))
    return float(slope / max(error, 1e-12))


def _phrase(name: str, value: str) -> str:
    return f"shapes {PLACES[value]}" if name == "position" else PHRASES[name].format(value)
