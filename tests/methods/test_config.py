"""The configuration refuses what cannot be meant, and names what was meant; YAML goes in and out unchanged."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

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
from diffalign.data.transforms import TRANSFORMS
from diffalign.methods import METHODS
from diffalign.methods.checks import check_keys
from diffalign.methods.config import ALIASES, TrainConfig
from diffalign.methods.config_file import from_mapping, load_yaml, save_yaml
from diffalign.methods.recipe import DRIVERS, recipe_of
from diffalign.objectives import OBJECTIVES
from tests.checked import checked
from tests.killing import killed_at

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
ONLINE = ("images_per_prompt", "prompts_per_turn", "updates_per_turn", "num_inference_steps", "sample_guidance_scale")
BESIDES = {"eval_every": {"eval_prompts": ["a star"]}, **dict.fromkeys(ONLINE, DRAWN)}  # what a key needs


def config(**values):
    return TrainConfig(**{"dataset_name": "pairs", **values})


def written(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text)
    return path


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


def test_yaml_gives_keys_under_their_own_names(tmp_path):
    path = written(tmp_path, "beta_dpo: 2500\nlora_rank: 4\ntrain_data_dir: pairs\nseed: 3\n")
    assert load_yaml(path) == {"beta": 2500, "rank": 4, "dataset_name": "pairs", "seed": 3}


def test_off_and_no_are_words(tmp_path):
    # YAML 1.1 takes them for false.
    path = written(tmp_path, "cache: off\nmixed_precision: no\nuse_ema: true\nskip_bad: False\n")
    assert load_yaml(path) == {"cache": "off", "mixed_precision": "no", "use_ema": True, "skip_bad": False}


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("5E3", 5000.0), ("1.5e-8", 1.5e-8), ("-2e2", -200.0), (".5e1", 5.0)])
def test_a_number_with_an_exponent_is_a_number_at_any_depth(tmp_path, text, value):
    # YAML 1.1, which PyYAML speaks, takes 1e-5 for text: it wants 1.0e-5.
    path = written(tmp_path, f"learning_rate: {text}\nobjective: {{dpo: {{beta: {text}}}}}\n")
    assert load_yaml(path) == {"learning_rate": value, "objective": {"dpo": {"beta": value}}}


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "v1e5", "'1e5'"])
def test_what_is_no_such_number_stays_what_it_was(tmp_path, text):
    assert load_yaml(written(tmp_path, f"output_dir: {text}\n")) == {"output_dir": yaml.safe_load(text)}


def test_an_empty_yaml_gives_no_key(tmp_path):
    assert load_yaml(written(tmp_path, "# nothing yet\n")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1\n", r"train.yaml: unknown key `lerning_rate`. Did you mean `learning_rate`\?"),
        ("3: 1\n", r"train.yaml: unknown key `3`."),
        ("- seed\n", r"train.yaml: found a list; expected keys and values"),
        ("seed: [1\n", r"train.yaml: not YAML"),
        ("beta: 1\nbeta_dpo: 2\n", r"train.yaml: `beta` is given twice, as `beta` and as `beta_dpo`"),
    ],
)
def test_a_yaml_that_cannot_be_meant_is_refused_with_its_name(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_yaml(written(tmp_path, text))


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: there is no such config file"):
        load_yaml(tmp_path / "none.yaml")


def test_a_base_file_lies_below_the_file_that_names_it(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "low.yaml").write_text("rank: 4\nbeta_dpo: 10\n")
    (tmp_path / "high.yaml").write_text("base: base/low.yaml\nbeta: 20\n")
    assert load_yaml(tmp_path / "high.yaml") == {"rank": 4, "beta": 20}
    (tmp_path / "base" / "low.yaml").write_text("base: ../high.yaml\n")
    with pytest.raises(ConfigError, match="`base` leads back"):
        load_yaml(tmp_path / "high.yaml")


def test_a_saved_config_comes_back_as_it_was(tmp_path):
    own = config(
        objective={"hinge": {"beta": 1000.0}},
        transforms=["pairs", {"flip_labels": {"share": 0.2}}, "orient"],
        validation_prompts=["a red circle", "ein grünes Dreieck: 1e5", "null", "no"],
        learning_rate=1e-8,
        lora_alpha=None,
        beta=5e20,
        use_ema=True,
    )
    save_yaml(own, tmp_path / "config.yaml")
    assert TrainConfig(**load_yaml(tmp_path / "config.yaml")) == own
    assert set(load_yaml(tmp_path / "config.yaml")) == {f.name for f in dataclasses.fields(TrainConfig)}


def test_a_config_whose_writer_is_killed_stays_what_it_was(tmp_path):
    save_yaml(config(), tmp_path / "config.yaml")
    with killed_at(1):
        save_yaml(config(beta=7.0), tmp_path / "config.yaml")
    assert TrainConfig(**load_yaml(tmp_path / "config.yaml")) == config()


def test_a_mapping_becomes_a_checked_config():
    assert checked(from_mapping({"train_data_dir": "pairs", "beta_dpo": 10}, "call")) == config(beta=10.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": "many"}, r"call: .*rank"),
        ({"cache": "ram"}, r"call: .*cache"),
        ({"sed": 1}, r"call: unknown key `sed`. Did you mean `seed`\?"),
        ({"rank": 0}, r"`rank` is 0; expected a finite number above zero"),
    ],
)
def test_a_mapping_with_a_wrong_key_type_or_value_is_refused(values, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        checked(from_mapping({"dataset_name": "pairs"} | values, "call"))


@pytest.mark.parametrize("module", ["diffalign", "diffalign.methods.config", "diffalign.methods.builders.data"])
def test_a_typo_is_found_without_importing_torch(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_yaml("configs/tiny/diffusion_dpo.yaml")["method"] == "diffusion_dpo"
    with pytest.raises(ConfigError, match=r"configs/tiny/none\.yaml: there is no such config file"):
        load_yaml("configs/tiny/none.yaml")


def test_every_key_is_typed_alike_in_a_file_and_in_python(tmp_path):
    for name, hint in get_type_hints(TrainConfig).items():
        value = "nothing" if "dict" in str(hint) else [["nothing"]]  # which no key of this type can be
        attempts = {
            "train.yaml": lambda name=name, value=value: load_yaml(written(tmp_path, yaml.safe_dump({name: value}))),
            "diffalign.align": lambda name=name, value=value: from_mapping({name: value}, "diffalign.align"),
            "": lambda name=name, value=value: checked(config(**{name: value})),
        }
        for where, attempt in attempts.items():
            with pytest.raises(ConfigError) as refusal:
                attempt()
            assert f"`{name}` is " in str(refusal.value), (name, where)
            assert where in str(refusal.value), name


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("train_method: Full", ["`train_method`", "'Full'", "`full`"]),
        ("train_method: qlora", ["`train_method`", "'qlora'", "lora, dora, full or user"]),
        ("cache: no", ["`cache`", "'no'", "disk or off"]),
        ("cache: false", ["`cache`", "False", "disk or off"]),
        ("reference: None", ["`reference`", "'None'", "`none`"]),
        ("quantization: 4bit", ["`quantization`", "'4bit'", "nf4, int8 or fp8"]),
        ("rank: eight", ["`rank`", "'eight'", "a whole number"]),
        ("optimizer: AdamW", ["`optimizer`", "'AdamW'", "`adamw`"]),
        ("max_steps: 10\nlora_r: 4", ["`max_steps`", "`max_train_steps`", "`lora_r`", "`rank`"]),
        ("base: [a.yaml]", ["`base`", "a.yaml"]),
        ("rank: 4\nrank: 8", ["rank", "twice"]),
        ("rank: 4\n\tbeta: 1", ["not YAML", "line 2"]),
        ("rank: &a [*a]", ["aliases"]),
    ],
)
def test_a_wrong_line_of_a_file_is_refused_with_file_key_and_what_was_expected(tmp_path, line, facts):
    with pytest.raises(ConfigError) as refusal:
        load_yaml(written(tmp_path, line))
    assert [fact for fact in ("train.yaml", *facts) if fact not in str(refusal.value)] == []


def test_a_file_counts_more_than_its_base_under_either_name(tmp_path):
    (tmp_path / "low.yaml").write_text("use_8bit_adam: true\nattention_backend: flash\n")
    high = "base: low.yaml\noptimizer: adafactor\nenable_xformers_memory_efficient_attention: true\n"
    assert load_yaml(written(tmp_path, high)) == {"optimizer": "adafactor", "enable_xformers_memory_efficient_attention": True}
