"""A config goes into a YAML file and comes back as it was; a file that cannot be meant is refused with its name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from diffalign.core.errors import ConfigError
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping, load_yaml, save_yaml
from tests.checked import checked
from tests.killing import killed_at


def config(**values):
    return TrainConfig(**{"dataset_name": "pairs", **values})


def written(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text)
    return path


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
        ("train_method: qlora", ["`train_method`", "'qlora'", "lora, dora, full, user or controlnet"]),
        ("cache: no", ["`cache`", "'no'", "disk, off or auto"]),
        ("cache: false", ["`cache`", "False", "disk, off or auto"]),
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
