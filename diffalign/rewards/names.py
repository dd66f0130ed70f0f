"""The names of scorers and tastes, checked before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable

from diffalign.core.errors import ConfigError, did_you_mean, shortened
from diffalign.core.specs import Spec, single

SCORER_NAMES = ("pickscore", "clipscore", "hps", "imagereward", "mps", "aesthetic", "vqascore", "adherence", "taste", "trained")
SCORER_NAMES += ("function", "http", "people", "vlm", "hpsv3", "combined", "implicit", "tools", "look")


def check_scorer_names(specs: Iterable[Spec]) -> None:
    """Raise ConfigError for a spec whose scorer there is not, or whose taste."""
    for spec in specs:
        name, constants = single("scorer", spec)
        if name not in SCORER_NAMES:
            raise ConfigError(f"there is no scorer `{name}`.{did_you_mean(name, SCORER_NAMES)}")
        if name == "combined" and isinstance(constants.get("scorers"), list | tuple):
            check_scorer_names(constants["scorers"])
        if name == "taste" and "name" in constants:
            check_taste_name(constants["name"])


def called(spec: Spec) -> str | None:
    """Return what a scorer's score will be called; None where only the loaded scorer knows."""
    name, constants = single("scorer", spec)
    if name == "hps":
        return f"hpsv{constants.get('version', '2.1')}"
    return constants.get("name") if name in ("taste", "look", "trained", "function", "http") else constants.get("name", name)


def check_taste_name(name: str) -> None:
    """Raise ConfigError for a taste that there is not."""
    from diffalign.data.world.tastes import TASTES  # scipy takes a while to import

    if not isinstance(name, str) or name not in TASTES:
        raise ConfigError(f"there is no taste `{shortened(str(name))}`.{did_you_mean(str(name), TASTES)}")
