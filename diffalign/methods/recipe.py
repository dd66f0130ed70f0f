"""What a training config means: the parts of its method with their constants, bound once and handed on.

Importing this takes no torch; `recipe_of` does, for the trajectory and the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.keys import Kind
from diffalign.core.specs import Bound, Spec, bind, single
from diffalign.methods import METHODS
from diffalign.methods.base import Method
from diffalign.models.users.settings import USER_ENCODERS
from diffalign.objectives import OBJECTIVES, Facts, bind_objective

if TYPE_CHECKING:
    from diffalign.methods.config import TrainConfig

Tuning = Literal["lora", "dora", "full", "user"]
Driver = Literal["policy", "reference", "ema"]
Constants = dict[str, dict[str, Any]]  # {name: constants}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parts of a run: the config's own where it names one, else the method's."""

    method: Method
    kind: Kind | None  # of model; None for a hub id, which only its data tell
    objective: Bound
    trajectory: Bound
    driver: Driver  # whose network runs the trajectory
    error: Bound
    transforms: tuple[Spec, ...]
    users: Bound | None  # the user encoder, where users are told apart
    tuning: Tuning  # what is trained
    compares: bool  # whether the policy is compared with a reference

    @property
    def facts(self) -> Facts:
        """Return what the objective needs besides two scores."""
        return OBJECTIVES[self.objective.name].facts

    @property
    def beta(self) -> float | None:
        """Return the objective's beta, None where it has none."""
        return self.objective.constants.get("beta")

    @property
    def inference(self) -> str:
        """Return how the result is used: plain, negative_guidance, user or reward."""
        return "user" if self.tuning == "user" else self.method.inference

    def has_transform(self, *names: str) -> bool:
        """Return whether one of the transforms has one of these names."""
        return any(single("transform", spec)[0] in names for spec in self.transforms)


def recipe_of(config: TrainConfig, kind: Kind | None = "image") -> Recipe:
    """Return what `config` means. Raises ConfigError for a name or constant that is none."""
    from diffalign.models.diffusion.likelihood import ERRORS

    trajectory, driver = _trajectory(config)
    users = users_of(config)
    return Recipe(
        method=METHODS[config.method],
        kind=kind,
        objective=bind_objective(part(config, "objective")),
        trajectory=trajectory,
        driver=driver,
        error=bind("error", ERRORS, part(config, "error")),
        transforms=tuple(transforms_of(config)),
        users=None if users is None else bind("user_encoder", USER_ENCODERS, users),
        tuning=tuning_of(config),
        compares=compares(config),
    )


def _trajectory(config: TrainConfig) -> tuple[Bound, Driver]:
    """Return the trajectory, and whose network runs it, which stands among its constants."""
    from diffalign.models.diffusion.trajectory import DRIVERS, TRAJECTORIES

    ((name, constants),) = part(config, "trajectory").items()
    of_trajectory = {constant: value for constant, value in constants.items() if constant != "driver" or name not in DRIVERS}
    trajectory, driver = bind("trajectory", TRAJECTORIES, {name: of_trajectory}), constants.get("driver", DRIVERS.get(name, "policy"))
    if driver not in get_args(Driver):
        raise ConfigError(f"trajectory `{name}`: `driver` is {driver!r}.{did_you_mean(str(driver), get_args(Driver))}")
    return trajectory, driver


def part(config: TrainConfig, kind: Literal["objective", "trajectory", "error"]) -> Constants:
    """Return {name: constants} of a part as it is written: the config's own, else the method's; `beta` and `label_smoothing` go on top."""
    written = getattr(config, kind)
    name, constants = single(kind, getattr(METHODS[config.method], kind) if written is None else written)
    on_top = {"beta": config.beta, "label_smoothing": config.label_smoothing} if kind == "objective" else {}
    return {name: {**constants, **{constant: value for constant, value in on_top.items() if value is not None}}}


def transforms_of(config: TrainConfig) -> Sequence[Spec]:
    """Return the specs of the transforms."""
    return METHODS[config.method].transforms if config.transforms is None else config.transforms


def users_of(config: TrainConfig) -> Constants | None:
    """Return {name: constants} of the user encoder, None where users are not told apart."""
    spec: Mapping[str, Any] | str | None = METHODS[config.method].users if config.user_encoder is None else config.user_encoder
    if spec is None:
        return None
    name, constants = single("user_encoder", spec)
    return {name: dict(constants)}


def tuning_of(config: TrainConfig) -> Tuning:
    """Return what is trained: `train_method`, or what goes with the method."""
    return config.train_method or ("lora" if users_of(config) is None else "user")


def compares(config: TrainConfig) -> bool:
    """Return whether the policy is compared with a reference."""
    return (config.reference or METHODS[config.method].reference) != "none"
