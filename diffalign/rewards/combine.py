"""The combiners by name: those of `data.combiners`, and the one whose weights are read from the prompt. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run
from diffalign.core.specs import Spec, bind, single
from diffalign.data.combiners import COMBINERS
from diffalign.data.combining import Combiner, Scope


def prompt_weights(*, path: str) -> Combiner:
    """Return the combiner of a run of reward_orchestrator or reward_armo in the folder `path`; see `rewards.prompt_weights`."""
    from diffalign.rewards.prompt_weights import load_prompt_weights  # torch takes seconds to import

    _weighed(path)
    return load_prompt_weights(path)


ALL: dict[str, Callable[..., Combiner]] = COMBINERS | {"prompt_weights": prompt_weights}


def combiner_of(how: Spec) -> Combiner:
    """Return the combiner of a spec."""
    return bind("combiner", ALL, how)()


def check_combiner(how: Spec, names: Sequence[str | None] = ()) -> None:
    """Raise ConfigError for a spec that is none, or has constants for other rewards than those called `names`, where all are known.

    Raises CheckpointError for a run that is not there; no weights are read.
    """
    bound = bind("combiner", ALL, how)
    if bound.name == "prompt_weights":
        path = bound.constants["path"]
        if (weighed := _weighed(path)) and names and all(names):
            check_weighed(path, weighed, [name for name in names if name])
    elif names and all(names):
        bound().check([name for name in names if name])


def check_weighed(run: object, weighed: Sequence[str], names: Sequence[str]) -> None:
    """Raise ConfigError where rewards of these names are not the ones that a run has learned to weigh."""
    if set(weighed) != set(names):
        raise ConfigError(f"`prompt_weights`: {run} weighs the scores {list(weighed)}; there are {list(names)}")


def _weighed(path: str) -> list[str]:
    """Return the scores that a run weighs. Raises CheckpointError where there is no run, ConfigError for one that weighs none."""
    run = Run.open(path, expects="reward")
    if run.method not in ("reward_orchestrator", "reward_armo"):
        raise ConfigError(f"`prompt_weights`: {path} is a run of {run.method}; expected one of reward_orchestrator or reward_armo")
    _, constants = single("reward_head", run.facts.get("reward_head") or run.method)
    return list(constants.get("scores") or constants.get("aspects") or ())


def scope_of(how: Spec) -> Scope:
    """Return whose rewards a combined one depends on, without reading weights."""
    return "image" if single("combiner", how)[0] == "prompt_weights" else combiner_of(how).scope
