"""What a stranger's run, table or config names is read and compared; its code never runs, and its addresses are never contacted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from diffalign.cli.parser import parse
from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run
from diffalign.core.trust import trusted
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table, write_table
from diffalign.evaluate.panel import panel, trained_with
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import config_of, from_mapping, load_yaml
from diffalign.rewards.score_table import score_table
from diffalign.rewards.table import bind_scorer, check_scorers, load_scorer
from diffalign.train import rounds
from diffalign.train.overoptimisation import Watch

PROMPTS = ["a red star", "a ring at the left", "a star at the left", "a ring", "a star", "a red ring"]
WATCHED = {"eval_every": 10, "eval_prompts": PROMPTS, "max_train_steps": 10}


@pytest.fixture
def evil(tmp_path):
    """Return a file that leaves a trace when it is imported, and the scorer by it."""
    file = tmp_path / "evil.py"
    file.write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'trace')!r}).touch()\ndef f(images, prompts):\n    return [0.0] * len(images)\n"
    )
    return {"function": {"path": f"{file}:f"}}


def specs(evil):
    """Return scorers that reach beyond this package, themselves or within another; the socket guard watches the server."""
    return [evil, {"http": {"url": "http://127.0.0.1:9/score", "name": "f"}}, {"trained": {"path": "x", "name": "f", "more": [evil]}}]


def write_run(folder, settings, **facts):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(
        json.dumps({"method": "diffusion_dpo", "base": "assets/tiny-sd", "train_method": "lora", "table": None} | facts)
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return Run.open(folder)


def runs(tmp_path, spec):
    """Return runs whose files name a scorer, by the place where they do."""
    table = write_table(
        tmp_path / "votes",
        [Record("1", "a star", (Candidate(image=b"1", scores={"f": 0.5}), Candidate(image=b"2", scores={"f": 1.0})))],
        generated={"rank_by": "f"},
        scorers=[{"name": "f", "spec": spec}],
        overwrite=True,
    )
    about = {"specs": {"f": spec}, "ranked_by": ["f"]}
    return {
        "run.json": write_run(tmp_path / "a", {}, scorers=about),
        "config.yaml": write_run(tmp_path / "b", {"eval_reward": spec}, scorers={"specs": {}, "ranked_by": []}),
        "manifest.json": write_run(tmp_path / "c", {"dataset_name": str(table.path)}, table=table.fingerprint),
        "best/config.yaml": write_run(tmp_path / "d", {"eval_scorers": [spec], "eval_reward": spec}, held_out=0.5),
    }


def test_evaluating_a_run_uses_no_scorer_that_only_its_files_name(tmp_path, evil, caplog):
    for spec in specs(evil):
        for place, run in runs(tmp_path, spec).items():
            caplog.clear()
            judges = panel(PROMPTS, [run])
            assert judges.all == ("adherence",), (place, spec)
            assert "--trust_scorers" in caplog.text, (place, spec)
            assert trained_with(run).used(spec, "f"), (place, spec)  # it is known all the same
            for read in trained_with(run).scorers:
                with pytest.raises(ConfigError, match="read from a file"):
                    load_scorer(read)
    assert not (tmp_path / "trace").exists()


def test_a_scorer_that_the_user_names_or_trusts_judges(tmp_path, evil, caplog):
    for place, run in runs(tmp_path, evil).items():
        assert panel(PROMPTS, [run], scorers=["adherence", evil]).reward(evil), place
        assert panel(PROMPTS, [run], reward=evil).all == ("adherence", evil), place
        caplog.clear()
        judges = panel(PROMPTS, [run], trust=True)
        assert judges.all == ("adherence", evil), place
        assert str(tmp_path / "evil.py") in caplog.text, place
        for spec in judges.rewards:
            assert load_scorer(spec).name == "f", place
    assert (tmp_path / "trace").exists()


def test_a_config_file_names_no_scorer_that_reaches_out_unless_a_flag_names_it_too(tmp_path, evil):
    file, named = tmp_path / "c.yaml", json.dumps(evil)
    for spec in specs(evil)[:2]:
        for content in ({"eval_reward": spec, "eval_scorers": ["adherence"]}, {"eval_scorers": ["adherence", spec]}):
            file.write_text(yaml.safe_dump(WATCHED | content))
            config = parse(TrainConfig, ["--config", str(file)], prog="x", epilog="")
            for read in (config, from_mapping(load_yaml(file), "a mapping"), replace(config, seed=1)):
                with pytest.raises(ConfigError, match="--trust_scorers"):
                    Watch.of(read)
        drawn = {"generate": {"prompts": PROMPTS, "scorers": [spec], "num_inference_steps": 1}, "output_dir": str(tmp_path / "out")}
        file.write_text(yaml.safe_dump(drawn))
        with pytest.raises(ConfigError, match="--trust_scorers"):
            rounds.planned(parse(TrainConfig, ["--config", str(file)], prog="x", epilog=""))
    assert not (tmp_path / "trace").exists()
    file.write_text(yaml.safe_dump(WATCHED | {"eval_scorers": ["adherence"], "eval_reward": evil}))
    for words in (["--trust_scorers"], ["--eval_reward", named]):
        Watch.of(parse(TrainConfig, ["--config", str(file), *words], prog="x", epilog=""))
    Watch.of(trusted_config(file))


def trusted_config(file):
    return from_mapping(trusted(load_yaml(file)), "a mapping")


def test_trust_does_not_come_from_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("trust_scorers: true\n")
    with pytest.raises(ConfigError, match="trust_scorers"):
        load_yaml(tmp_path / "c.yaml")


def test_a_run_that_is_gone_on_from_and_a_table_that_is_scored_name_none_either(tmp_path, evil):
    run = runs(tmp_path, evil)["config.yaml"]
    with pytest.raises(ConfigError, match="--trust_scorers"):
        bind_scorer(config_of(run).eval_reward)
    table = read_table(tmp_path / "votes")
    with pytest.raises(ConfigError, match="--trust_scorers"):
        score_table(table, tmp_path / "scored", [about["spec"] for about in table.manifest["scorers"]])
    with pytest.raises(ConfigError, match="--trust_scorers"):
        check_scorers([about["spec"] for about in table.manifest["scorers"]])
    assert not (tmp_path / "trace").exists()
