"""Lists of specs on the command line, in words and as one list."""

from __future__ import annotations

import pytest

from diffalign.cli import main as cli
from diffalign.methods.config import TrainConfig

HIGH = {"taste": {"name": "high"}}
COMMANDS = {
    "commands_eval.evaluate": ("scorers", ["eval", "--output_dir", "run"]),
    "commands_score.score": ("scorers", ["score", "--output_dir", "scored"]),
    "commands_pairs.generate": ("scorers", ["pairs", "generate", "--output_dir", "ranked"]),
    "commands.train": ("eval_scorers", ["train", "--dataset_name", "votes"]),
}


FORMS = (["pickscore", "{taste: {name: high}}"], ["[pickscore, {taste: {name: high}}]"], ["pickscore", "[{taste: {name: high}}]"])


@pytest.mark.parametrize(
    ("command", "form"), [*((command, FORMS[0]) for command in COMMANDS), *(("commands_score.score", f) for f in FORMS[1:])]
)
def test_specs_are_given_in_words_or_as_one_list(monkeypatch, command, form):
    flag, words = COMMANDS[command]
    given = []
    monkeypatch.setattr(f"diffalign.{command}", lambda config, *rest, **more: given.append(getattr(config, flag)) or 0)
    assert cli.main([*words, f"--{flag}", *form]) == 0
    assert given == [["pickscore", HIGH]]


def test_specs_of_a_file_stay_as_they_are(monkeypatch, tmp_path):
    given: list[TrainConfig] = []
    monkeypatch.setattr(cli.commands, "train", lambda config, **more: given.append(config) or 0)
    (tmp_path / "config.yaml").write_text(
        "dataset_name: votes\neval_scorers: [pickscore, {taste: {name: high}}]\ntransforms: [pairs, orient]\n"
    )
    assert cli.main(["train", "--config", str(tmp_path / "config.yaml")]) == 0
    assert (given[0].eval_scorers, given[0].transforms) == (["pickscore", HIGH], ["pairs", "orient"])


def test_one_word_where_a_file_has_to_have_a_list_is_refused_with_the_form(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("dataset_name: votes\neval_scorers: pickscore\n")
    assert cli.main(["train", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "`eval_scorers` is 'pickscore'; expected a list, [pickscore]" in capsys.readouterr().err
