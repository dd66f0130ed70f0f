"""The configuration refuses what cannot be meant, and names what was meant; YAML goes in and out unchanged."""

from __future__ import annotations

import dataclasses
import re
from typing import get_args, get_type_hints

import pytest

from diffalign.core.errors import ConfigError
from diffalign.core.keys import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    GROUP,
    NOT_NEGATIVE,
    SHARE,
    SHARE_BELOW_HALF,
    SHARE_BELOW_ONE,
    Range,
    facts_of,
)
from diffalign.core.specs import bind
from diffalign.core.values import key_value
from diffalign.data.transforms import TRANSFORMS
from diffalign.methods import METHODS
from diffalign.methods.checks import check_keys
from diffalign.methods.config import ALIASES, TrainConfig
from diffalign.methods.recipe import DRIVERS, recipe_of
from diffalign.objectives import OBJECTIVES
from tests.checked import checked

NAN = float("nan")
# Of every range: what it refuses at its ends, and what it accepts there.
ENDS: dict[Range, tuple[tuple[float, ...], tuple[float, ...]]] = {
    ABOVE_ZERO: ((0, -1, NAN), (1,)),
    AT_LEAST_ONE: ((0, -3, NAN), (1,)),
    GROUP: ((1, 65, NAN), (2, 64)),
    NOT_NEGATIVE: ((-1, NAN), (0, 1)),
    SHARE: ((-0.1, 1.1, NAN), (0.0, 1.0)),
    SHARE_BELOW_ONE: ((-0.1, 1.0, NAN), (0.0, 0.9999)),
    SHARE_BELOW_HALF: ((-0.1, 0.5, NAN), (0.0, 0.49)),
}
FREE = {"logit_mean", "mode_scale"}  # any number can be meant
LATER = {"held_out_share"}  # refused with the other keys of reward models: see tests/rewards/heads
RANGES = {name: facts.range for name, facts in facts_of(TrainConfig).items() if facts.range in ENDS}
# By hand, so that a key whose range is lost, or is another one, is noticed.
REFUSED = {
    "beta": (0, -1, NAN),
    "learning_rate": (0, -1, NAN),
    "rank": (0, -1),
    "train_batch_size": (0, -1),
    "max_train_steps": (0, -1),
    "resolution": (0, -1),
    "gradient_accumulation_steps": (0, -3),
    "checkpoints_total_limit": (0, -3),
    "max_train_samples": (0, -3),
    "spike_factor": (-1,),
    "guidance_scale": (-1,),
    "label_smoothing": (-0.1, 0.5, NAN),
    "lora_dropout": (-0.1, 1.0),
    "ema_decay": (-0.1, 1.0),
    "adam_beta1": (-0.1, 1.0),
    "adam_beta2": (-0.1, 1.0),
    "proportion_empty_prompts": (-0.1, 1.1),
    "lr_scheduler": ("cosin", ""),
    "dataset_name": ("",),
    "method": ("diffusion_dpp",),
    "objective": ("dpp", {"dpp": {"beta": 1.0}}, {}),
}
ACCEPTED = {
    "beta": (1e-3, 5000.0, None),
    "learning_rate": (1e-12, 1),
    "rank": (1,),
    "gradient_accumulation_steps": (1,),
    "checkpoints_total_limit": (1, None),
    "spike_factor": (0, 1),
    "guidance_scale": (0, 1),
    "label_smoothing": (0.0, 0.49),
    "lora_dropout": (0.0, 0.99),
    "ema_decay": (0.0, 0.9999),
    "adam_beta1": (0.0, 0.9),
    "adam_beta2": (0.0, 0.999),
    "proportion_empty_prompts": (0.0, 1.0),
    "lr_scheduler": ("constant", "cosine", "polynomial"),
    "objective": ({"hinge": {"beta": 1.0}}, "mapo", None),
}
DRAWN = {"dataset_name": "", "prompts": ["a star"], "scorers": ["adherence"], "train_batch_size": 8}
ONLINE = (
    "images_per_prompt",
    "prompts_per_turn",
    "updates_per_turn",
    "num_inference_steps",
    "sample_guidance_scale",
    "max_completion_length",
    "start_model_steps",
)
WATCHED = {"eval_every": 1, "eval_prompts": ["a star"]}
BESIDES = {"eval_every": {"eval_prompts": ["a star"]}, **dict.fromkeys(ONLINE, DRAWN)}  # what a key needs
BESIDES |= dict.fromkeys(("eval_num_inference_steps", "eval_guidance_scale"), WATCHED)
BESIDES["anchor_weight"] = {"anchor_dataset_name": "anchor"}
BESIDES["text_encoder_lr"] = {"train_text_encoder": True}
BESIDES["round_momentum"] = {"rounds": 2, "generate": {"prompts": ["a star"], "scorers": ["adherence"]}}


def config(**values):
    return TrainConfig(**{"dataset_name": "pairs", **values})


def spread(table):
    return [pytest.param(key, value, id=f"{key}={value}") for key, values in table.items() for value in values]


@pytest.mark.parametrize(("key", "value"), spread(REFUSED))
def test_a_value_that_cannot_be_meant_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"`{key}` is "):
        checked(config(**{key: value}))


@pytest.mark.parametrize(("key", "value"), spread(ACCEPTED))
def test_the_ends_of_every_range_are_accepted(key, value):
    own = config(**{key: value})
    assert checked(own) is own


@pytest.mark.parametrize("key", RANGES)
def test_every_key_keeps_to_the_range_that_it_states(key):
    refused, accepted = ENDS[RANGES[key]]
    for value in refused:
        expected = re.escape(RANGES[key].expected) if value == value else "a (whole )?number"
        with pytest.raises(ConfigError, match=rf"`{key}` is {value}; expected {expected}$"):
            checked(config(**{key: value}))
    for value in accepted:
        checked(config(**{key: value}, **BESIDES.get(key, {})))


def test_every_number_has_a_range_unless_any_can_be_meant():
    hints = get_type_hints(TrainConfig)
    numbers = {name for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)}}
    assert set(RANGES) == numbers - FREE - LATER
    assert {name for name, facts in facts_of(TrainConfig).items() if facts.range is not None} == set(RANGES)


def test_the_refusal_says_what_was_expected():
    with pytest.raises(ConfigError, match=r"`label_smoothing` is 0.5.*\[0, 0.5\)"):
        checked(config(label_smoothing=0.5))


@pytest.mark.parametrize(("key", "value", "meant"), [("method", "difusion_dpo", "diffusion_dpo"), ("objective", "hing", "hinge")])
def test_an_unknown_method_or_objective_names_the_nearest(key, value, meant):
    with pytest.raises(ConfigError, match=rf"`{key}` is '{value}'. Did you mean `{meant}`\?"):
        checked(config(**{key: value}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sdpo_mu": 0.9, "objective": {"rank_dpo": {"beta": 100}}}, "`sdpo_mu` is for pairs of images, and objective `rank_dpo`"),
        ({"sdpo_mu": 0.9, "objective": "selm"}, "`sdpo_mu` is for pairs of images, and objective `selm`"),
        ({"objective": {"clipped_ratio": {"low": 0.2, "kl": 0.1}}, "beta": None, "reference": "none"}, "`clipped_ratio` compares with a"),
        ({"sdpo_mu": 1.5}, "`sdpo_mu` is 1.5"),
        ({"sdpo_mu": 0.9, "error": "pseudo_huber"}, r"`sdpo_mu` compares the outputs of networks.*`error` is pseudo_huber"),
        ({"objective": "dspo", "error": "pseudo_huber"}, r"objective `dspo` compares the outputs of networks.*`error` is pseudo_huber"),
    ],
)
def test_what_compares_outputs_is_refused_where_it_cannot(values, message):
    with pytest.raises(ConfigError, match=message):
        check_keys(TrainConfig(**{"dataset_name": "pairs", "beta": 5.0, **values}))


def test_a_recipe_keeps_outputs_only_where_they_are_compared():
    def recipe(**values):
        return recipe_of(TrainConfig(dataset_name="pairs", **values))

    assert not recipe().residuals
    assert recipe(sdpo_mu=0.9).residuals
    assert recipe(objective="dspo").residuals
    assert recipe(objective="awm").drifts
    assert not recipe(objective={"awm": {"kl": 0.0}}).drifts
    assert not recipe(objective="dgpo").drifts


def test_an_objective_without_its_beta_is_refused():
    with pytest.raises(ConfigError, match="objective `hinge` needs `beta`"):
        checked(config(objective="hinge"))


def test_aliases_lead_to_keys_and_hide_none():
    keys = {f.name for f in dataclasses.fields(TrainConfig)}
    assert set(ALIASES.values()) <= keys
    assert not set(ALIASES) & keys


@pytest.mark.parametrize("name", METHODS)
def test_the_parts_of_every_method_exist_and_bind(name):
    method, recipe = METHODS[name], recipe_of(config(method=name))
    assert recipe.objective.spec == {part: dict(constants) for part, constants in method.objective.items()}
    assert recipe.objective.function is OBJECTIVES[recipe.objective.name].loss
    ((trajectory, constants),) = method.trajectory.items()
    assert recipe.trajectory.spec == {trajectory: {constant: value for constant, value in constants.items() if constant != "driver"}}
    assert recipe.driver == constants.get("driver", DRIVERS.get(trajectory, "policy"))
    assert recipe.driver in ("policy", "reference", "ema")
    assert method.reference in ("policy_start", "none")
    score_range = {"low": 0.0, "high": 1.0, "candidates": 2}  # come from the table
    assert all(bind("transform", TRANSFORMS, spec, **score_range) for spec in method.transforms)


def shift(x, *, by, twice=False):
    return x + by * (1 + twice)


TABLE = {"shift": shift, "negate": lambda x: -x}


def test_a_spec_binds_its_constants():
    assert bind("step", TABLE, {"shift": {"by": 2}})(1) == 3
    assert bind("step", TABLE, {"shift": {"by": 2, "twice": True}})(1) == 5
    assert bind("step", TABLE, "negate")(1) == -1
    assert bind("step", TABLE, {"negate": None})(1) == -1


def test_defaults_fill_what_the_spec_does_not_give_and_what_the_function_has():
    assert bind("step", TABLE, "shift", by=4)(1) == 5
    assert bind("step", TABLE, {"shift": {"by": 2}}, by=4)(1) == 3
    assert bind("step", TABLE, "negate", by=4)(1) == -1
    assert bind("step", TABLE, {"shift": {"by": 2}}, twice=None)(1) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shfit", r"there is no step `shfit`. Did you mean `shift`\?"),
        ("zzz", r"there is no step `zzz`. Known: negate, shift."),
        ({"shift": {"bye": 1}}, r"step `shift` takes no `bye`. Did you mean `by`\?"),
        ({"shift": {"x": 1, "by": 1}}, r"step `shift` takes no `x`."),
        ("shift", r"step `shift` needs `by`; give it as \{shift: \{by: ...\}\}"),
        ({}, r"`step` is written as a name or as \{name: \{constant: value\}\}; found \{\}"),
        ({"shift": 3}, r"`step` is written as a name"),
        ({"shift": {}, "negate": {}}, r"`step` is written as a name"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        bind("step", TABLE, spec)


def test_a_default_that_is_none_leaves_a_constant_missing():
    with pytest.raises(ConfigError, match="needs `by`"):
        bind("step", TABLE, "shift", by=None)


def test_every_default_fits_the_annotation_of_its_key():
    """So a key that nobody set needs no look."""
    hints = get_type_hints(TrainConfig)
    defaults = {item.name: item.default for item in dataclasses.fields(TrainConfig) if item.default is not dataclasses.MISSING}
    assert {name: key_value(name, hints[name], default) for name, default in defaults.items()} == defaults
