"""What a training config means: the parts of its method with their constants, put together once and handed on.

Only the properties `trajectory` and `error` import torch, so that bad data are refused in a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.keys import Kind
from diffalign.core.specs import Bound, Spec, bind, single
from diffalign.methods import METHODS
from diffalign.methods.base import Method
from diffalign.models.users.settings import USER_ENCODERS
from diffalign.objectives import OBJECTIVES, Facts, bind_objective
from diffalign.objectives.diffusion import winner_preserving
from diffalign.objectives.with_terms import with_rationale

if TYPE_CHECKING:
    from diffalign.methods.config import TrainConfig

Tuning = Literal["lora", "dora", "full", "user", "controlnet"]
Driver = Literal["policy", "reference", "ema"]
Constants = dict[str, dict[str, Any]]  # {name: constants}
# Whose network a trajectory runs if the config does not say: policy, reference or ema (a moving average of the policy, as in Self-NPO's
# release). `forward` runs none.
DRIVERS = {"ddim_inversion": "policy", "self_rollout": "ema"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parts of a run: the config's own where it names one, else the method's."""

    method: Method
    kind: Kind | None  # of model; None for a hub id, which only its data tell
    objective: Bound
    trajectory_spec: Constants  # without its driver
    driver: Driver  # whose network runs the trajectory
    error_spec: Constants
    transforms: tuple[Spec, ...]
    users: Bound | None  # the user encoder; None for a method without users
    tuning: Tuning  # what is trained
    compares: bool  # whether the policy is compared with a reference
    residuals: bool  # whether the outputs of networks are compared, beside their scores
    rationales: bool  # whether it is learned, too, why one answer was preferred

    @property
    def trajectory(self) -> Bound:
        """Return the trajectory. Raises ConfigError for a name or constant that is none."""
        from diffalign.models.diffusion.trajectory import TRAJECTORIES

        return bind("trajectory", TRAJECTORIES, self.trajectory_spec)

    @property
    def error(self) -> Bound:
        """Return the error between output and target. Raises ConfigError for a name or constant that is none."""
        from diffalign.models.diffusion.likelihood import ERRORS

        return bind("error", ERRORS, self.error_spec)

    @property
    def facts(self) -> Facts:
        """Return what the loss needs besides two scores."""
        return self.method.facts or OBJECTIVES[self.objective.name].facts

    @property
    def drifts(self) -> bool:
        """Return whether the loss has a term of the drift from the start model."""
        return self.facts.drift is not None and self.objective.constants[self.facts.drift] > 0

    @property
    def bounded(self) -> bool:
        """Return whether the loss compares scores with those of the policy that drew the images."""
        return self.facts.old is not None and self.objective.constants[self.facts.old] is not None

    @property
    def neighbours(self) -> bool:
        """Return whether the loss reads scores under the prompts of other records."""
        return self.objective.constants.get("zero_point") == "neighbour"

    @property
    def beta(self) -> float | None:
        """Return the objective's beta, None where it has none."""
        return self.objective.constants.get("beta")

    @property
    def inference(self) -> str:
        """Return how the result is used: plain, negative_guidance, user or reward."""
        return "user" if self.tuning == "user" else self.method.inference


def recipe_of(config: TrainConfig, kind: Kind | None = "image") -> Recipe:
    """Return what `config` means. Raises ConfigError for a name or constant that is none (see `Recipe` for trajectory and error)."""
    trajectory, driver = _trajectory(config)
    users = users_of(config)
    return Recipe(
        method=METHODS[config.method],
        kind=kind,
        objective=objective_of(config),
        trajectory_spec=trajectory,
        driver=driver,
        error_spec=part(config, "error"),
        transforms=tuple(transforms_of(config)),
        users=None if users is None else bind("user_encoder", USER_ENCODERS, users),
        tuning=tuning_of(config),
        compares=compares(config),
        residuals=compares_outputs(config),
        rationales=config.rationale_weight is not None,
    )


def objective_of(config: TrainConfig) -> Bound:
    """Return the loss with its constants, with SDPO's scale where `sdpo_mu` asks for it, and with rationales by `rationale_weight`."""
    bound = bind_objective(part(config, "objective"))
    if config.sdpo_mu is not None:
        bound = replace(bound, function=winner_preserving(bound.function, mu=config.sdpo_mu, over=config.sdpo_scale))
    if config.rationale_weight is not None:
        bound = replace(bound, function=with_rationale(bound.function, weight=config.rationale_weight))
    return bound


def compares_outputs(config: TrainConfig) -> bool:
    """Return whether the outputs of networks are compared, beside their scores."""
    return config.sdpo_mu is not None or OBJECTIVES[bind_objective(part(config, "objective")).name].facts.residuals


def _trajectory(config: TrainConfig) -> tuple[Constants, Driver]:
    """Return the trajectory as it is written, and whose network runs it, which stands among its constants."""
    ((name, constants),) = part(config, "trajectory").items()
    driver = constants.get("driver", DRIVERS.get(name, "policy")) if name in DRIVERS else "policy"
    for constant in constants:
        if name in DRIVERS and constant != "driver" and get_close_matches(constant, ["driver"], cutoff=0.8):
            raise ConfigError(f"trajectory `{name}` takes no `{constant}`. Did you mean `driver`?")
    if driver not in get_args(Driver):
        raise ConfigError(f"trajectory `{name}`: `driver` is {driver!r}.{did_you_mean(str(driver), get_args(Driver))}")
    return {name: {constant: value for constant, value in constants.items() if constant != "driver" or name not in DRIVERS}}, driver


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
    """Return {name: constants} of the user encoder, None for a method without users."""
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
