"""From words to configs: flags of every command, lists of specs in words or as one list, config files with flags on top."""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import pkgutil
import sys
from pathlib import Path

import pytest

from diffalign.cli import commands
from diffalign.cli.commands import data_cache, quickstart, train
from diffalign.cli.main import main, names
from diffalign.cli.parser import parse, parser_of
from diffalign.core.errors import ConfigError
from diffalign.core.keys import default_of, keys_for
from diffalign.core.version import __version__
from diffalign.methods.config import ALIASES, SECTIONS, TrainConfig

HIGH = {"taste": {"name": "high"}}
INVERSION = {"ddim_inversion": {"steps": 5, "driver": "reference"}}
COMMANDS = {
    "eval": ("scorers", ["eval", "--output_dir", "run"]),
    "score": ("scorers", ["score", "--output_dir", "scored"]),
    "pairs_generate": ("scorers", ["pairs", "generate", "--output_dir", "ranked"]),
    "train": ("eval_scorers", ["train", "--dataset_name", "votes"]),
}
FORMS = (["pickscore", "{taste: {name: high}}"], ["[pickscore, {taste: {name: high}}]"], ["pickscore", "[{taste: {name: high}}]"])
FILES = [module.name for module in pkgutil.iter_modules(commands.__path__)]
NEW = '''"""`diffalign data count`."""
from dataclasses import dataclass

ABOUT, HELP = "count rows", "an example"


@dataclass(frozen=True, kw_only=True)
class CONFIG:
    """Count the rows of a table."""

    dataset_name: str
    """Table."""


def run(config: CONFIG) -> int:
    """Say the name, and give a status of its own."""
    print(f"counted {config.dataset_name}")
    return 7
'''


@pytest.fixture
def given(monkeypatch):
    """Return the list that every command notes its config in, instead of running."""
    configs = []
    for name in FILES:
        monkeypatch.setattr(f"diffalign.cli.commands.{name}.run", lambda config: configs.append(config) or 0)
    return configs


def module(name):
    return importlib.import_module(f"diffalign.cli.commands.{name}")


def refusal(words, capsys):
    """Return what the command line says of words that it refuses with status 2."""
    try:
        status = main(words)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_commands_has_the_four_names(name):
    command = module(name)
    assert dataclasses.is_dataclass(command.CONFIG)
    assert command.CONFIG.__doc__
    assert command.ABOUT
    assert "\n" not in command.ABOUT
    assert isinstance(command.HELP, str)
    assert callable(command.run)


def test_the_help_lists_every_command_and_that_of_a_group_its_own(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in FILES:
        assert f"  {name.replace('_', ' ')} " in said
        assert module(name).ABOUT in said
    assert [" ".join(name) for name in names()] == sorted(name.replace("_", " ") for name in FILES)
    assert main(["data", "--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name in FILES if f"\n  {name.replace('_', ' ')} " in said] == [name for name in FILES if name.startswith("data_")]
    assert main([]) == main(["data"]) == 2


def test_a_new_command_is_one_file(monkeypatch, tmp_path, capsys):
    (tmp_path / "data_count.py").write_text(NEW)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert main(["data", "count", "--dataset_name", "votes"]) == 7
    assert capsys.readouterr().out == "counted votes\n"
    assert main(["--help"]) == 0
    assert "  data count       count rows\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["data", "count", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "usage: diffalign data count" in said
    assert "Count the rows of a table." in said
    assert "an example" in said
    assert "Did you mean `--dataset_name`?" in refusal(["data", "count", "--dataset", "votes"], capsys)


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffalign {__version__}\n"


@pytest.mark.parametrize("name", FILES)
def test_every_field_has_a_flag_and_a_help_with_its_default(name):
    config = module(name).CONFIG
    actions = {option: action for action in parser_of(config, "diffalign", "")._actions for option in action.option_strings}
    for item in dataclasses.fields(config):
        action, default = actions[f"--{item.name}"], default_of(item)
        assert len(action.help) > 5, item.name
        silent = default is dataclasses.MISSING or default in (None, "", [], {}) or default is False
        assert silent or f"Default: {str(default).lower() if default is True else default}." in action.help, item.name
    if issubclass(config, TrainConfig):
        assert all(actions[f"--{alias}"] is actions[f"--{key}"] for alias, key in ALIASES.items())
        assert actions["--config"].help


def test_the_help_of_training_has_the_essentials_on_two_screens_and_all_flags_where_asked(capsys):
    pages = {}
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stopped:
            main(["train", flag])
        assert stopped.value.code == 0
        pages[flag] = capsys.readouterr().out
    assert pages["--help"].count("\n") < 120
    assert set(SECTIONS) <= {item.name for item in dataclasses.fields(TrainConfig)}
    for item in dataclasses.fields(train.CONFIG):
        assert f"--{item.name}" in pages["--help_all"], item.name
        assert (f"  --{item.name} " in pages["--help"]) == (item.name in essentials() or not hasattr(TrainConfig, item.name)), item.name


def essentials():
    return keys_for(TrainConfig, "help")


@pytest.mark.parametrize(("command", "form"), [*((command, FORMS[0]) for command in COMMANDS), *(("score", f) for f in FORMS[1:])])
def test_specs_are_given_in_words_or_as_one_list(given, command, form):
    flag, words = COMMANDS[command]
    assert main([*words, f"--{flag}", *form]) == 0
    assert [getattr(config, flag) for config in given] == [["pickscore", HIGH]]
    assert type(given[0]) is module(command).CONFIG


def test_specs_of_a_file_stay_as_they_are(given, tmp_path):
    (tmp_path / "config.yaml").write_text(
        "dataset_name: votes\neval_scorers: [pickscore, {taste: {name: high}}]\ntransforms: [pairs, orient]\n"
    )
    assert main(["train", "--config", str(tmp_path / "config.yaml")]) == 0
    assert (given[0].eval_scorers, given[0].transforms) == (["pickscore", HIGH], ["pairs", "orient"])


def test_one_word_where_a_file_has_to_have_a_list_is_refused_with_the_form(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("dataset_name: votes\neval_scorers: pickscore\n")
    assert main(["train", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "`eval_scorers` is 'pickscore'; expected a list, [pickscore]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "data_cache"])
@pytest.mark.parametrize("joined", [False, True])
def test_flags_go_on_top_of_a_file_wherever_they_stand(given, tmp_path, name, joined):
    path = tmp_path / "config.yaml"
    path.write_text("dataset_name: votes\nlora_rank: 4\nbeta: 100\nuse_ema: true\n")
    file = [f"--config={path}"] if joined else ["--config", str(path)]
    assert main([*name.split("_"), "--rank", "2", *file, "--no_use_ema"]) == 0
    assert type(given[0]) is module(name).CONFIG
    assert given[0] == module(name).CONFIG(dataset_name="votes", rank=2, beta=100.0, use_ema=False)


@pytest.mark.parametrize(
    ("words", "flag", "near"),
    [
        (["train", "--learing_rate", "1"], "--learing_rate", "--learning_rate"),
        (["data", "cache", "--trajectry"], "--trajectry", "--trajectory"),
        (["eval", "--output_dir", "run", "--promts", "x"], "--promts", "--prompts"),
        (["quickstart", "--txt"], "--txt", "--text"),
        (["export", "--output_dir", "run", "--destination", "out", "--format", "merged"], "--format", "--formats"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest(given, capsys, words, flag, near):
    said = refusal(words, capsys)
    assert flag in said
    assert f"Did you mean `{near}`?" in said
    assert said.count("\n") == 1
    assert not given


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dta", "import"], "there is no command `dta`. Did you mean `data`?"),
        (["data", "imprt"], "`diffalign data` has no command `imprt`. Did you mean `import`?"),
        (["eval", "agree"], "`diffalign eval` has no command `agree`. Did you mean `agreement`?"),
        (["score"], "output_dir"),
        (["--rank", "3"], "the command comes first"),
        (["train", "--dataset_name", "votes", "--max_train_steps", "inf"], "a whole number"),
        (["train", "--dataset_name", "votes", "-r"], "--r is no flag"),
        (["train", "--dataset_name", "votes", "--", "--rank"], "`--rank`"),
        (["train", "--rank", "many"], "rank"),
    ],
)
def test_other_words_that_mean_nothing_are_refused_in_a_sentence(given, capsys, words, message):
    said = refusal(words, capsys)
    assert message in said
    assert said.count("\n") == 1
    assert not given


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], None),
        (["--trajectory"], data_cache.OWN),
        (["--trajectory", "--rank", "8"], data_cache.OWN),
        (["--trajectory", "{ddim_inversion: {steps: 5, driver: reference}}"], INVERSION),
    ],
)
def test_a_trajectory_of_data_cache_may_stand_alone(given, words, found):
    assert main(["data", "cache", "--dataset_name", "votes", *words]) == 0
    assert given[0].trajectory == found
    assert given[0].dataset_name == "votes"


def test_a_trajectory_of_training_may_not(capsys):
    assert "--trajectory" in refusal(["train", "--dataset_name", "votes", "--trajectory"], capsys)


@pytest.mark.parametrize(
    ("words", "points"),
    [
        ([], 0),
        (["--trajectory"], 4),
        (["--trajectory", "--trajectory_cache", "2"], 2),
        (["--trajectory={ddim_inversion: {steps: 5, driver: reference}}"], 4),
        (["--config", "config.yaml"], 0),  # says what is trained with, and asks for no points
        (["--config", "config.yaml", "--trajectory"], 4),
    ],
)
def test_points_are_kept_where_the_command_line_names_a_trajectory(monkeypatch, tmp_path, words, points):
    (tmp_path / "config.yaml").write_text("trajectory: {ddim_inversion: {steps: 5, driver: reference}}\n")
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr("diffalign.data.table.is_table", lambda _: True)
    monkeypatch.setattr("diffalign.methods.checks.check", lambda config: trained.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["data", "cache", "--dataset_name", "votes", "--method", "inpo", *words])
    assert type(trained[0]) is TrainConfig
    assert trained[0].trajectory_cache == points
    named = any("{" in word or "config" in word for word in words)
    assert trained[0].trajectory == (INVERSION if named else None)


@pytest.mark.parametrize(
    ("words", "loop", "values"),
    [
        (["--rank", "4", "--method", "mapo"], "_images", {"rank": 4, "method": "mapo"}),
        (["--text", "--rank", "4", "--alpha", "2"], "_texts", {"rank": 4, "alpha": 2.0}),
        (["--alpha", "5"], "_images", {}),  # what it is without being said
    ],
)
def test_quickstart_runs_the_loop_for_texts_if_asked(monkeypatch, words, loop, values):
    asked = []
    for name in ("_images", "_texts"):
        monkeypatch.setattr(quickstart, name, lambda options, name=name: asked.append((name, options)) or 0)
    assert main(["quickstart", *words]) == 0
    assert asked == [(loop, values)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "--method", "mapo"], "`method` is a flag of `diffalign quickstart without --text`"),
        (["--alpha", "2"], "`alpha` is a flag of `diffalign quickstart with --text`"),
    ],
)
def test_a_flag_of_the_other_loop_is_refused(capsys, words, message):
    assert message in refusal(["quickstart", *words], capsys)


def test_dry_run_is_a_flag_and_no_key(tmp_path):
    assert parse(train.CONFIG, ["--dataset_name", "votes", "--dry_run"], prog="diffalign train", epilog="").dry_run
    (tmp_path / "config.yaml").write_text("dry_run: true\n")
    with pytest.raises(ConfigError, match="unknown key `dry_run`"):
        parse(train.CONFIG, ["--config", str(tmp_path / "config.yaml")], prog="diffalign train", epilog="")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--share_prompt", "false"], {"share_prompt": False}),
        (["--share_prompt=no"], {"share_prompt": False}),
        (["--overwrite_output_dir=true"], {"overwrite_output_dir": True}),
        (["--use_ema", "YES", "--skip_bad", "1", "--random_flip", "0"], {"use_ema": True, "skip_bad": True}),
        (["--use_ema", "--no_share_prompt"], {"use_ema": True, "share_prompt": False}),
        (["--use-ema", "--learning-rate=1e-4"], {"use_ema": True, "learning_rate": 1e-4}),
        (["--max_train_steps", "1e3"], {"max_train_steps": 1000}),
        (["--lora_layers", "to_q", "to_k"], {"lora_layers": ["to_q", "to_k"]}),
        (["--lora_layers", "[to_q, to_k]"], {"lora_layers": ["to_q", "to_k"]}),
        (["--transforms", "pairs", "{flip_labels: {share: 0.2}}"], {"transforms": ["pairs", {"flip_labels": {"share": 0.2}}]}),
        (["--validation_prompts", "[a star]", "null"], {"validation_prompts": ["[a star]", "null"]}),
        (["--variant", "null", "--logit_mean", "-0.5"], {"logit_mean": -0.5}),
        (["--output_dir", "~/out"], {"output_dir": str(Path.home() / "out")}),
    ],
)
def test_words_are_taken_as_people_type_them(given, words, values):
    assert main(["train", "--dataset_name", "votes", *words]) == 0
    assert given[0] == train.CONFIG(dataset_name="votes", **values)


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--share_prompt", "maybe"], ["--share_prompt", "'maybe'", "true or false"]),
        (["--rank", "many"], ["--rank", "'many'", "a whole number"]),
        (["--rank", "8.5"], ["--rank", "'8.5'", "a whole number"]),
        (["--learning_rate", "nan"], ["--learning_rate", "'nan'", "a number"]),
        (["--train_method", "Full"], ["--train_method", "'Full'", "lora, dora, full, user or controlnet", "`full`"]),
        (["--objective", "{dpo"], ["--objective", "YAML"]),
        (["--objective", "[dpo]"], ["--objective", "{name: {constant: value}}"]),
        (["votes"], ["`votes`"]),
        (["--share_prompt", "false", "true"], ["`true`"]),
        (["--rank"], ["--rank"]),
        (["--optimizer", "adamw", "--use_8bit_adam"], ["--optimizer adamw", "--no_use_8bit_adam"]),
        (["--fsdp", "full_shard"], ["--fsdp", "every process holds the whole"]),
        (["--frobnicate", "1"], ["--frobnicate"]),
    ],
)
def test_a_wrong_word_is_one_sentence_with_flag_value_and_what_was_expected(given, capsys, words, facts):
    text = refusal(["train", "--dataset_name", "votes", *words], capsys)
    assert [fact for fact in facts if fact not in text] == []
    assert text.count("\n") == 1
    assert "Did you mean `--seed`" not in text
    assert not given


@pytest.mark.parametrize(
    ("file", "words", "values"),
    [
        ("use_8bit_adam: true", ["--optimizer", "adamw"], {}),
        ("use_8bit_adam: true", ["--no_use_8bit_adam"], {}),
        ("optimizer: adafactor", ["--use_8bit_adam"], {"use_8bit_adam": True}),
        ("optimizer: adafactor", ["--no_use_8bit_adam"], {"optimizer": "adafactor"}),
        ("enable_xformers_memory_efficient_attention: true", ["--attention_backend", "sdpa"], {"attention_backend": "sdpa"}),
    ],
)
def test_a_flag_counts_more_than_a_recipe_under_either_name(given, tmp_path, file, words, values):
    (tmp_path / "config.yaml").write_text(f"dataset_name: votes\n{file}\n")
    assert main(["train", "--config", str(tmp_path / "config.yaml"), *words]) == 0
    assert given[0] == train.CONFIG(dataset_name="votes", **values)


def test_every_wrong_word_is_answered_at_once(given, capsys):
    text = refusal(["train", "--scale_lr", "--num_train_epochs", "3", "--learing_rate", "1", "--max_steps", "5"], capsys)
    assert [flag for flag in ("--scale_lr", "--learning_rate", "--learing_rate") if flag not in text] == []
    assert text.count("\n") == 2
    assert not given


def test_texts_that_the_terminal_cannot_show_are_written_as_escapes(monkeypatch, capsys, given):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    monkeypatch.setattr("diffalign.cli.commands.env.run", lambda _: sys.stdout.write("ein Stern, \u661f\n") * 0)
    assert main(["env"]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"ein Stern, \\u661f" + os.linesep.encode()


def test_a_word_that_is_no_text_is_refused(given, capsys):
    text = refusal(["train", "--dataset_name", "caf\udce9"], capsys)
    assert "caf\\udce9" in text
    assert "PYTHONUTF8" in text
