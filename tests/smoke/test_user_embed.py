"""Personalised training to a user's picture through the command line, and what `diffalign user embed` refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diffalign
from diffalign.cli.main import main
from diffalign.core.errors import ConfigError
from diffalign.infer.embed_users import _files
from diffalign.infer.users.personal import Personal
from tests.infer.runs import write_run
from tests.infer.user_runs import choices, write_user_run, write_votes
from tests.micro_models import picture, stock


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    return write_votes(tmp_path_factory.mktemp("votes") / "votes.parquet")


@pytest.fixture(scope="module")
def run(micro_sd, tmp_path_factory):
    return write_user_run(tmp_path_factory.mktemp("run") / "run", micro_sd)


def embed(run, *words):
    """Run `diffalign user embed` and return its exit status."""
    return main(["user", "embed", "--output_dir", str(run), *map(str, words)])


def test_a_user_is_trained_for_embedded_drawn_for_and_judged(micro_sd, votes, tmp_path, capsys):
    run, ann = tmp_path / "run", tmp_path / "ann.safetensors"
    words = ["--pretrained_model_name_or_path", str(micro_sd), "--dataset_name", str(votes), "--output_dir", str(run)]
    words += ["--method", "ppd", "--max_train_steps", "3", "--train_batch_size", "4", "--learning_rate", "1e-2"]
    words += ["--user_encoder", "{pairs: {fit_steps: 5}}"]
    assert main(["train", *words]) == 0
    assert embed(run, "--dataset_name", votes, "--user_id", "ann", "--destination", ann) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(ann)
    personal = diffalign.load(run)
    assert np.abs(picture(personal.for_user(ann)) - picture(stock(micro_sd))).max() > 1e-4
    np.testing.assert_allclose(personal.for_user(choices(4, 0)).tokens, personal.for_user(ann).tokens, atol=1e-5)

    told = ["eval", "--output_dir", str(run), "--prompts", "a red star", "--taste", "warm", "--num_inference_steps", "2"]
    for whom in (["--user", str(ann)], ["--pairs", str(votes), "--user_id", "bob"]):
        assert main([*told, *whom]) == 0
    assert main(["eval", "--output_dir", str(run), "--dataset_name", str(votes)]) == 0
    assert 0.0 <= json.loads((run / "eval" / "eval.json").read_text())["implicit_accuracy_heldout"] <= 1.0
    capsys.readouterr()
    for whom, sentence in (
        ([], "give a file of `diffalign user embed` with --user"),
        (["--pairs", str(votes)], "has 2 users; name one with --user_id. Known: ann, bob."),
        (["--user", str(ann), "--user_id", "bob"], "leave out --user_id and --pairs"),
    ):
        assert main([*told, *whom]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["eval", "--output_dir", str(run), "--dataset_name", str(votes), "--user", str(ann)]) == 2
    assert "draws no pictures without --prompts; leave out --user" in capsys.readouterr().err
    plain = write_run(tmp_path / "dpo", micro_sd)
    assert main(["eval", "--output_dir", str(plain), "--prompts", "a star", "--user", str(ann)]) == 2
    assert "a run of diffusion_dpo is not personalised; leave out --user" in capsys.readouterr().err


def test_every_user_of_a_dataset_gets_a_file(run, tmp_path, capsys):
    votes = write_votes(tmp_path / "votes.parquet", ("ann", "a/b", "../c"))
    assert embed(run, "--dataset_name", votes, "--destination", tmp_path / "users") == 0
    names = [path.name for path in (tmp_path / "users").iterdir()]
    assert len(names) == 3
    assert "ann.safetensors" in names
    assert all(re.fullmatch(r"ann\.safetensors|(a_b|_._c)-[0-9a-f]{8}\.safetensors", name) for name in names)
    assert len(capsys.readouterr().out.splitlines()) == 3
    personal = diffalign.load(run)
    np.testing.assert_allclose(
        personal.for_user(tmp_path / "users" / "ann.safetensors").tokens, personal.for_user(choices()).tokens, atol=1e-5
    )
    assert embed(run, "--dataset_name", votes, "--destination", tmp_path / "users") == 2
    assert "is there already" in capsys.readouterr().err
    assert embed(run, "--dataset_name", votes, "--destination", tmp_path / "users", "--overwrite") == 0


def test_only_the_first_pairs_are_read(run, votes, tmp_path):
    file = tmp_path / "ann.safetensors"
    assert embed(run, "--dataset_name", votes, "--user_id", "ann", "--max_pairs", "2", "--destination", file) == 0
    personal = diffalign.load(run)
    np.testing.assert_allclose(personal.for_user(file).tokens, personal.for_user(choices(4)[:2]).tokens, atol=1e-5)


def test_a_dataset_without_users_is_one_users(run, votes, tmp_path):
    nameless = tmp_path / "nameless.parquet"
    pq.write_table(pq.read_table(votes).drop_columns("user_id").slice(0, 4), nameless)
    assert embed(run, "--dataset_name", nameless, "--destination", tmp_path / "me.safetensors") == 0
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["me.safetensors"]


def test_records_that_name_no_user_are_left_out_where_others_do(run, votes, tmp_path, caplog):
    rows = pq.read_table(votes).to_pylist()
    for row in rows[1:3]:
        row["user_id"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet")
    assert embed(run, "--dataset_name", tmp_path / "some.parquet", "--destination", tmp_path / "users") == 0
    assert sorted(path.name for path in (tmp_path / "users").iterdir()) == ["ann.safetensors", "bob.safetensors"]
    assert "2 pairs name no user, and are left out" in caplog.text


def test_no_file_is_written_where_a_user_cannot_be_made(run, votes, tmp_path, monkeypatch):
    made, real = [], Personal.for_user

    def once(self, who):
        made.append(who)
        if len(made) > 1:
            raise ConfigError("no more")
        return real(self, who)

    monkeypatch.setattr(Personal, "for_user", once)
    assert embed(run, "--dataset_name", votes, "--destination", tmp_path / "users") == 2
    assert len(made) == 2
    assert not (tmp_path / "users").exists()


def test_users_keep_apart_whatever_their_ids(tmp_path):
    users = ["ann", "Ann", "bob", 300 * "x", 300 * "x" + "y", 100 * "\u732b", "\u732b"]
    names = [path.name for path in _files(dict.fromkeys(users), tmp_path, overwrite=False).values()]
    assert len({name.casefold() for name in names}) == len(users)
    assert all(len(name.encode()) < 140 for name in names)
    assert (names[2], names[-1]) == ("bob.safetensors", "\u732b.safetensors")


def test_what_makes_no_user_is_refused_before_a_weight_loads(run, micro_sd, votes, tmp_path, capsys, monkeypatch):
    broken = pq.read_table(votes).to_pylist()
    broken[1]["jpg_0"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(broken), tmp_path / "broken.parquet")
    ties = write_votes(tmp_path / "ties.parquet", ("ann",), label=0.5)
    plain = write_run(tmp_path / "dpo", micro_sd)
    file, folder = tmp_path / "ann.safetensors", tmp_path / "users"
    index = write_user_run(tmp_path / "index", micro_sd, "one_hot")
    monkeypatch.setattr("diffalign.infer.embed_users.load", None)
    for words, sentence in (
        ((run, "--destination", file), "needs one of --dataset_name, with a user's pairs, --profile, a text, and --sliders"),
        ((run, "--destination", file, "--profile", "likes red", "--sliders", "{size: 1}"), "needs one of --dataset_name"),
        ((run, "--destination", file, "--sliders", "{size: 1}"), "pairs reads of a user pairs, and not values of sliders"),
        ((run, "--destination", file, "--dataset_name", votes, "--max_pairs", 0), "`max_pairs` is 0"),
        ((run, "--destination", file, "--profile", "likes red", "--user_id", "ann"), "leave out --user_id and --max_pairs"),
        ((run, "--destination", file, "--profile", "likes red", "--max_pairs", 2), "leave out --user_id and --max_pairs"),
        ((run, "--destination", file, "--profile", "likes red"), "pairs reads of a user pairs, and not a text"),
        (
            (index, "--destination", file, "--dataset_name", votes),
            "one_hot reads of a user the id that it had in training, and not pairs",
        ),
        ((tmp_path, "--destination", file, "--dataset_name", votes), "no finished run"),
        ((plain, "--destination", file, "--dataset_name", votes), "a run of diffusion_dpo, which is not personalised"),
        ((run, "--destination", file, "--dataset_name", votes, "--user_id", "anne"), "user 'anne'. Did you mean `ann`?"),
        ((run, "--destination", file, "--dataset_name", ties), "no pair with a preference among 4 records"),
        ((run, "--destination", file, "--dataset_name", tmp_path / "broken.parquet"), "row 1"),
        ((run, "--destination", file, "--dataset_name", votes), "is one file, for 2 users; give a folder"),
        ((run, "--destination", folder, "--dataset_name", votes, "--user_id", "ann"), "expected a file whose name ends in .safetensors"),
    ):
        assert embed(*words) == 2
        assert sentence in capsys.readouterr().err
    assert not file.exists()
    assert not folder.exists()


def test_help_says_what_is_done_about_odd_users(capsys):
    with pytest.raises(SystemExit):
        main(["user", "embed", "--help"])
    said = capsys.readouterr().out
    for words in ("no pairs", "one pair", "contradicting pairs", "an image that is broken", "a file of another run"):
        assert f"\n  {words} " in said


def test_held_out_pairs_of_users_that_an_index_does_not_know_are_refused(micro_sd, votes, tmp_path, capsys):
    strangers = write_votes(tmp_path / "others.parquet", ("ann", "zoe"))
    words = ["--pretrained_model_name_or_path", str(micro_sd), "--dataset_name", str(votes), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *words, "--method", "ppd", "--max_train_steps", "1", "--user_encoder", "one_hot"]) == 0
    assert main(["eval", "--output_dir", str(tmp_path / "run"), "--dataset_name", str(strangers)]) == 2
    assert "user 'zoe' (1 of 2 users) is not among the 2 of the training" in capsys.readouterr().err
    alone = write_votes(tmp_path / "bob.parquet", ("bob",))
    assert main(["eval", "--output_dir", str(tmp_path / "run"), "--dataset_name", str(alone)]) == 0
