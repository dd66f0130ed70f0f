"""The scorers by name, and loading them: `bind` reads a spec such as `adherence` or {taste: {name: high}}."""

from __future__ import annotations

from collections.abc import Callable

from diffalign.rewards.base import Scorer
from diffalign.rewards.clip import aesthetic, clipscore, pickscore
from diffalign.rewards.function import function, http
from diffalign.rewards.hps import hps
from diffalign.rewards.imagereward import imagereward
from diffalign.rewards.mps import mps
from diffalign.rewards.shapes import adherence, taste
from diffalign.rewards.trained import trained
from diffalign.rewards.vqascore import vqascore
from diffalign.specs import Spec, bind, single

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
}


def called(spec: Spec) -> str | None:
    """Return what a scorer's score will be called; None where only the loaded scorer knows."""
    name, constants = single("scorer", spec)
    if name == "hps":
        return f"hpsv{constants.get('version', '2.1')}"
    return constants.get("name") if name in ("taste", "trained", "function", "http") else name


def load_scorer(spec: Spec, *, device: str = "cpu") -> Scorer:
    """Return the scorer that `spec` names, its weights on `device` if it has any. Raises ConfigError for a spec that is none."""
    return bind("scorer", SCORERS, spec, device=device)()
