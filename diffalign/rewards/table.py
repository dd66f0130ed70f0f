"""The scorers by name, and loading them: `bind_scorer` reads a spec such as `adherence` or {taste: {name: high}}.

It is the only way from a spec to a scorer, and refuses one that runs code or contacts a server unless the user has named it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.runs import RUN, Run
from diffalign.core.specs import Bound, Spec, bind, single
from diffalign.core.trust import refuse
from diffalign.rewards.base import Scorer
from diffalign.rewards.combine import scope_of
from diffalign.rewards.heads.settings import reads_texts
from diffalign.rewards.names import called
from diffalign.rewards.scorers.clip import aesthetic, clipscore, pickscore
from diffalign.rewards.scorers.combined import check_combination, combination
from diffalign.rewards.scorers.function import CallableScorer, function
from diffalign.rewards.scorers.hps import hps
from diffalign.rewards.scorers.hpsv3 import hpsv3
from diffalign.rewards.scorers.http import http
from diffalign.rewards.scorers.imagereward import imagereward
from diffalign.rewards.scorers.implicit import check_implicit, implicit
from diffalign.rewards.scorers.looks import look
from diffalign.rewards.scorers.mps import mps
from diffalign.rewards.scorers.people import people
from diffalign.rewards.scorers.tools import tools
from diffalign.rewards.scorers.trained import trained
from diffalign.rewards.scorers.vlm import check_wording, vlm
from diffalign.rewards.scorers.vqascore import vqascore
from diffalign.rewards.scorers.world import adherence, taste


def combined(*, scorers: Sequence[Spec], how: Spec = "standardised", name: str = "combined", device: str = "cpu") -> CallableScorer:
    """Return the scorer that makes one score of several scorers' by a combiner of `data.combiners`; see `scorers.combined`.

    Raises ConfigError for scorers that are none or of one name, and for a combiner that looks at all prompts at once.
    """
    return combination([load_scorer(spec, device=device) for spec in scorers], how, name)


SCORERS: dict[str, Callable[..., Scorer]] = {
    "pickscore": pickscore,
    "clipscore": clipscore,
    "hps": hps,
    "imagereward": imagereward,
    "mps": mps,
    "aesthetic": aesthetic,
    "vqascore": vqascore,
    "adherence": adherence,
    "taste": taste,
    "trained": trained,
    "function": function,
    "http": http,
    "people": people,
    "vlm": vlm,
    "hpsv3": hpsv3,
    "tools": tools,
    "combined": combined,
    "implicit": implicit,
    "look": look,
}
WEIGHTLESS = ("adherence", "taste", "look", "function", "http", "people")
WEIGHTS = ("model", "head", "processor", "tokenizer")  # constants that name weights or what belongs to them, here or on the hub


def bind_scorer(spec: Spec, *, device: str = "cpu") -> Bound:
    """Return the function that makes the scorer of a spec, with its constants.

    Raises ConfigError for a spec that is none, and for one that runs code or contacts a server and was read from a file (`core.trust`).
    """
    refuse(spec)
    return bind("scorer", SCORERS, spec, device=device)


def check_scorers(specs: Sequence[Spec], rank_by: str | None = None) -> None:
    """Raise ConfigError for specs that are none, for files and folders that are not there, and for a `rank_by` that no score is called.

    Scorers without weights are made, which tells of a taste or function that there is none; all others are known by their names alone.
    """
    for spec in specs:
        bound = bind_scorer(spec)
        name, constants = single("scorer", spec)
        if name in WEIGHTLESS:
            bound()
        elif name == "vlm":
            check_wording(bound.constants)
        elif name == "combined":
            check_scorers(bound.constants["scorers"])
            check_combination([called(inner) for inner in bound.constants["scorers"]], bound.constants["how"])
        elif name == "trained":
            Run.open(constants["path"], expects="reward")
        elif name == "implicit":
            check_implicit(constants["path"])
        for constant, value in constants.items():
            if constants.get("url") or constant not in WEIGHTS or not value:
                continue
            local = value.startswith((".", "/", "~")) or value.count("/") > 1  # as no hub id does
            if local and not Path(value).exists():
                raise ConfigError(f"scorer `{name}`: `{constant}` is {value!r}, and there is no such file or folder")
    names = [called(spec) for spec in specs]
    if rank_by is not None and rank_by not in names and None not in names:
        raise ConfigError(f"`rank_by` is {rank_by!r}, and no scorer gives it.{did_you_mean(rank_by, filter(None, names))}")


def compares(spec: Spec) -> bool:
    """Return whether a scorer gives verdicts on two pictures, so that its scores are of pictures of one prompt beside each other."""
    name, constants = single("scorer", spec)
    return name == "vlm" and constants.get("protocol") == "pairwise"


def _turns_in_circles(path: Any) -> bool:
    """Return whether a folder holds a run of reward_gpm, whose scores are of pictures beside each other."""
    return isinstance(path, str) and (Path(path) / RUN).is_file() and Run.open(path, expects="reward").method == "reward_gpm"


def together(spec: Spec) -> bool:
    """Return whether a score is one beside those of the prompt's other pictures, and so says nothing of two models' or two times'."""
    name, constants = single("scorer", spec)
    if name == "trained":
        return _turns_in_circles(constants.get("path"))
    if name != "combined":
        return compares(spec)
    bound = bind("scorer", SCORERS, spec)
    return scope_of(bound.constants["how"]) == "prompt" or any(map(together, bound.constants["scorers"]))


def judges_texts(spec: Spec) -> bool:
    """Return whether a scorer is a run of a language model, which judges texts where all others judge pictures."""
    name, constants = single("scorer", spec)
    if name == "trained":
        return reads_texts(Run.open(constants["path"], expects="reward").base)
    return name == "implicit" and check_implicit(constants["path"]).kind == "text"


def parts_of(spec: Spec) -> Iterator[Spec]:
    """Yield the scorers that a scorer is made of: those of a `combined` one, or itself.

    >>> list(parts_of({"combined": {"scorers": ["hps", {"combined": {"scorers": ["mps", "aesthetic"]}}]}}))
    ['hps', 'mps', 'aesthetic']
    """
    name, constants = single("scorer", spec)
    if name != "combined":
        yield spec
    for inner in constants.get("scorers", ()) if name == "combined" else ():
        yield from parts_of(inner)


def load_scorer(spec: Spec, *, device: str = "cpu") -> Scorer:
    """Return the scorer that `spec` names, ready to score.

    Args:
        spec: name of a scorer, or {name: {constant: value}}.
        device: where its weights lie, if it has any.

    Raises ConfigError for a spec that is none, and for one that runs code or contacts a server and was read from a file; CheckpointError
    for weights that do not load.

    Example:
        >>> scorer = load_scorer("adherence")
        >>> scorer([Image.new("RGB", (64, 64))], ["a red star"])  # doctest: +SKIP
        array([0.])
    """
    return bind_scorer(spec, device=device)()
