"""Judgements read from tables and columns: which things are compared, what is left out, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from diffalign.cli.main import main
from diffalign.core.errors import ConfigError, RecordError, TableError
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.evaluate.judgements import read_judgements
from diffalign.evaluate.verdicts import verdict_in
from diffalign.rewards.agreement import Comparisons, Items, counted, describe, verdict_accuracy
from tests.paths import DATA_FIXTURES, FIXTURES

FIXTURES = FIXTURES / "agreement"
RANKINGS = DATA_FIXTURES / "imagereward_rankings.json"


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def shown(*scores: dict[str, float], ranks: list[float] | None = None) -> tuple[Candidate, ...]:
    return tuple(Candidate(text=f"t{i}", scores=own, rank=ranks[i] if ranks else None) for i, own in enumerate(scores))


def test_real_votes_have_their_published_counts_and_both_bad_is_a_tie_or_no_vote() -> None:
    source = str(FIXTURES / "genai_bench_votes.csv")
    said = read_judgements(source, votes=["human_vote"])
    assert said.counts == {"human_vote": {"both_bad": 273, "left": 643, "right": 663, "tie": 156}}
    assert counted(said.human) == {"prompts": 1205, "pairs": 1735, "strict": 1306, "ties": 429}
    dropped = read_judgements(source, votes=["human_vote"], both_bad="drop")
    assert (counted(dropped.human)["pairs"], counted(dropped.human)["ties"]) == (1735 - 273, 156)


def test_real_ratings_are_compared_within_their_prompts() -> None:
    said = read_judgements(str(FIXTURES / "tifa.csv"), human="human_avg", prompt="text_id", scores=["spice"])
    found = counted(said.scorers["spice"])
    assert (found["things"], found["prompts"], found["pairs"]) == (800, 160, 160 * 10)  # five systems a prompt


def test_the_majority_of_several_raters_is_what_people_say(tmp_path: Path) -> None:
    rows = "r1,r2,r3,s_0,s_1\n1,1,2,0.5,0.25\n0,1,2,1,3\n2,2,2,1,1\n"
    said = read_judgements(written(tmp_path / "v.csv", rows), votes=["r1", "r2", "r3"], scores=["s"])
    assert isinstance(said.human, Comparisons)
    assert said.human.human.tolist() == [1.0, 0.0, -1.0]  # no verdict leads in the second row
    judged = said.scorers["s"]
    assert isinstance(judged, Comparisons)
    assert judged.gap.tolist() == [0.25, -2.0, 0.0]


def test_verdicts_of_a_judge_that_are_none_are_left_out_and_counted() -> None:
    said = read_judgements(str(FIXTURES / "pandalm.csv"), votes=["annotator1", "annotator2", "annotator3"], scores=["pandalm_7b", "gpt_35"])
    assert said.left_out == {"pandalm_7b": 0, "gpt_35": 25}
    assert counted(said.human) == {"prompts": 999, "pairs": 999, "strict": 422 + 472, "ties": 105}
    assert counted(said.scorers["gpt_35"])["pairs"] == 999 - 25


def test_missing_scores_are_left_out_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "r.csv", "prompt,human,s\na,1,2\na,2,\na,3,4\nb,1,nan\n")
    said = read_judgements(path, human="human", scores=["s"])
    assert said.left_out == {"s": 2}
    judged = said.scorers["s"]
    assert isinstance(judged, Items)
    assert (judged.human.tolist(), judged.metric.tolist()) == ([1.0, 3.0], [2.0, 4.0])


def test_a_table_of_real_rankings_gives_its_pairs_and_a_record_without_ranks_is_counted(tmp_path: Path) -> None:
    rows = json.loads(RANKINGS.read_text())["rows"]
    records = [Record(key, f"prompt {number}", shown(*({"s": -float(r)} for r in ranks), ranks=ranks)) for key, number, ranks in rows]
    write_table(tmp_path / "t", [*records, Record("plain", "p", shown({}, {}))])
    said = read_judgements(str(tmp_path / "t"))
    assert (counted(said.human)["strict"], counted(said.human)["ties"], said.unlabelled) == (6399, 831, 1)
    found = describe(said.scorers["s"], resamples=100)
    assert "kendall" not in found  # ranks of different prompts do not compare


def test_a_table_of_pairs_gives_its_votes(tmp_path: Path) -> None:
    pair = shown({"s": 2.0, "rated": 1.0}, {"s": 0.5, "rated": 4.0})
    records = [Record(f"r{i}", "p", pair, prob=prob) for i, prob in enumerate((1.0, 0.5, 0.2, None))]
    write_table(tmp_path / "t", records)
    said = read_judgements(str(tmp_path / "t"), scores=["s"])
    judged = said.scorers["s"]
    assert isinstance(judged, Comparisons)
    assert (judged.human.tolist(), judged.gap.tolist(), said.unlabelled) == ([1.0, 0.0, -1.0], [1.5] * 3, 1)
    rated = read_judgements(str(tmp_path / "t"), human="rated")
    assert list(rated.scorers) == ["s"]
    assert isinstance(rated.human, Items)
    assert rated.human.human.tolist() == [1.0, 4.0] * 4


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ({}, ConfigError, "--human .* or with --votes"),
        ({"human": "human", "votes": ["vote"]}, ConfigError, "--human .* or with --votes"),
        ({"human": "humann"}, ConfigError, "no column `humann`. Did you mean `human`"),
        ({"human": "human", "prompt": "text"}, ConfigError, "no column `text`"),
        ({"votes": ["vote"], "scores": ["clip"]}, ConfigError, "no columns `clip_0` and `clip_1` of scores, and no column `clip`"),
        ({"votes": ["prompt"]}, RecordError, "row 0: column `prompt` holds 'x'"),
        ({"human": "vote"}, RecordError, "column `vote` holds str 'left'; expected a number"),
    ],
)
def test_columns_that_do_not_serve_are_refused(tmp_path: Path, given: dict, error: type, why: str) -> None:
    path = written(tmp_path / "v.csv", "prompt,human,vote\nx,1,left\n")
    with pytest.raises(error, match=why):
        read_judgements(path, **given)


def test_tables_that_do_not_serve_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t", [Record("r", "p", shown({"s": 2.0}, {"s": 0.5}))])
    for given, error, why in (
        ({"scores": ["z"]}, ConfigError, "no candidate has a score `z`"),
        ({"votes": ["v"]}, ConfigError, "leave out --votes and --prompt"),
        ({}, TableError, "no record has a vote or ranks"),
    ):
        with pytest.raises(error, match=why):
            read_judgements(str(tmp_path / "t"), **given)


def test_the_command_prints_and_writes_the_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = FIXTURES / "pandalm.csv", tmp_path / "new" / "a.json"
    raters = ["annotator1", "annotator2", "annotator3"]
    command = ["eval", "agreement", "--dataset_name", str(source), "--votes", *raters, "--scores", "pandalm_7b", "--resamples", "100"]
    assert main([*command, "--destination", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "annotator1, annotator2: equal 0.913, kappa 0.852" in printed
    found = json.loads(target.read_text())["scorers"]["pandalm_7b"]
    assert round(found["ties_class"]["value"], 4) == 0.6677  # as the authors of these votes print
    assert found["ties_class"]["low"] < 0.6677 < found["ties_class"]["high"]


def test_the_command_rates_models_by_their_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "left,right,vote\n" + "mine,base,left\n" * 12 + "mine,base,bothbad_vote\n"
    source, target = written(tmp_path / "v.csv", rows), tmp_path / "r.json"
    command = ["eval", "ratings", "--dataset_name", source, "--models", "left", "right", "--votes", "vote", "--both_bad", "drop"]
    assert main([*command, "--resamples", "200", "--destination", str(target)]) == 0
    best, worst = json.loads(target.read_text())
    assert (best["model"], best["wins"], best["losses"], best["ties"]) == ("mine", 12.0, 0.0, 0)
    assert best["rating"] - worst["rating"] == pytest.approx(np.log(25.0), abs=1e-8)
    assert "mine" in capsys.readouterr().out


def test_the_command_rates_models_by_a_scorer(tmp_path: Path) -> None:
    rows = "prompt,base,dpo,npo\n" + "".join(f"p{i},{0.1 * i},{0.1 * i + 0.05 * (-1) ** (i % 3 == 0)},{0.1 * i}\n" for i in range(30))
    source, target = written(tmp_path / "s.csv", rows), tmp_path / "r.json"
    command = ["eval", "ratings", "--dataset_name", source, "--scores", "base", "dpo", "npo", "--resamples", "100"]
    assert main([*command, "--destination", str(target)]) == 0
    best, *others = json.loads(target.read_text())
    assert (best["model"], best["wins"], best["losses"], best["ties"]) == ("dpo", 40.0, 20.0, 0)
    assert [(r["wins"], r["losses"], r["ties"]) for r in others] == [(10.0, 20.0, 30)] * 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["agrement"], "`diffalign eval` has no command `agrement`. Did you mean `agreement`?"),
        (["votes"], "`diffalign eval` has no command `votes`. Known: agreement, ratings."),
        (
            ["agreement", "--dataset_name", "tifa.csv", "--human", "human_avg", "--resamples", "5"],
            "`resamples` is 5; expected at least 100",
        ),
        (["agreement", "--dataset_name", "tifa.csv", "--human", "human_avg"], "no two things under one prompt"),
        (
            ["ratings", "--dataset_name", "pandalm.csv", "--votes", "annotator1", "--models", "idx"],
            "`models` names 1 columns and `votes` 1",
        ),
        (["ratings", "--dataset_name", "pandalm.csv"], "needs --models and --votes, or --scores"),
        (["ratings", "--dataset_name", "tifa.csv", "--scores", "spice"], "expected two or more"),
        (["--prompts", "x"], "output_dir"),
    ],
)
def test_the_command_refuses_what_it_cannot_use(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(FIXTURES / word) if word.endswith(".csv") else word for word in words]
    try:
        status: object = main(["eval", *given])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert why in capsys.readouterr().err


def test_the_fixtures_hold_what_their_sources_say() -> None:
    counts = {path.name: len(list(csv.reader(path.read_text().splitlines()))) - 1 for path in FIXTURES.glob("*.csv")}
    assert counts == {"tifa.csv": 800, "genai_bench_votes.csv": 1735, "pandalm.csv": 999}


def test_published_accuracies_of_judges_are_reproduced() -> None:
    """PandaLM's README: PandaLM-7B 0.6677 and gpt-3.5-turbo 0.7107 of 999; 25 answers of the latter hold no verdict, and count as ties."""
    said = read_judgements(str(FIXTURES / "pandalm.csv"), votes=["annotator1", "annotator2", "annotator3"], scores=["pandalm_7b", "gpt_35"])
    found = {}
    for judge, unreadable in (("pandalm_7b", "drop"), ("gpt_35", "tie"), ("gpt_35", "wrong"), ("gpt_35", "drop")):
        estimate = verdict_accuracy(said.people, said.judges[judge], said.human.group, unreadable=unreadable, resamples=100)
        assert estimate is not None
        found[judge, unreadable] = (round(estimate.value, 4), estimate.prompts)
    assert found["pandalm_7b", "drop"] == (0.6677, 999)
    assert found["gpt_35", "tie"] == (0.7107, 999)
    assert found["gpt_35", "wrong"] == (round(697 / 999, 4), 999)
    assert found["gpt_35", "drop"] == (round(697 / 974, 4), 974)


def test_both_bad_is_a_verdict_of_its_own_if_asked(tmp_path: Path) -> None:
    rows = "vote,judge\nbothbad,[[A=B=Bad]]\nbothbad,[[C]]\nleft,[[A>>B]]\ntie,gibberish\n"
    path, found = written(tmp_path / "v.csv", rows), {}
    for both_bad in ("tie", "class"):
        said = read_judgements(path, votes=["vote"], scores=["judge"], both_bad=both_bad)
        estimate = verdict_accuracy(said.people, said.judges["judge"], said.human.group, unreadable="wrong")
        assert estimate is not None
        found[both_bad] = estimate.value
    assert found == {"tie": 3 / 4, "class": 2 / 4}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A>B]]", "left"),
        ("[[A]]", "left"),
        ("[[A>>B]]", "left"),
        ("A > B", "left"),
        ("[[B<A]]", "left"),
        ("[[B]]", "right"),
        ("[[B>>A]]", "right"),
        ("[[A<<B]]", "right"),
        ("I first thought [[A]], but the hat is missing. [[B>A]]", "right"),
        ("[[C]]", "tie"),
        ("[[A=B]]", "tie"),
        ("[[tie]]", "tie"),
        ("[[A=B=Good]]", "tie"),
        ("[[A=B=Bad]]", "both_bad"),
        ("Tie (bothbad)", "both_bad"),
        ("c", None),
        ("", None),
        (None, None),
        ("[[D]]", None),
    ],
)
def test_verdicts_are_read_as_judges_write_them(text: str | None, verdict: str | None) -> None:
    assert verdict_in(text) == verdict


def test_empty_cells_of_people_are_left_out_and_counted(tmp_path: Path) -> None:
    ratings = read_judgements(written(tmp_path / "r.csv", "prompt,human,s\na,1,1\na,,2\na,3,3\n"), human="human", scores=["s"])
    assert isinstance(ratings.human, Items)
    assert (ratings.human.human.tolist(), ratings.unlabelled) == ([1.0, 3.0], 1)
    votes = read_judgements(written(tmp_path / "v.csv", "n,x,y\n1,left,\n2,,\n3,right,right\n"), votes=["x", "y"])
    assert isinstance(votes.human, Comparisons)
    assert (votes.human.human.tolist(), votes.unlabelled) == ([1.0, -1.0], 1)
    assert votes.raters == {"x": ["left", "right"], "y": [None, "right"]}
    with pytest.raises(ConfigError, match="`human` is empty in every row"):
        read_judgements(written(tmp_path / "e.csv", "prompt,human\na,\nb,\n"), human="human")


def test_the_command_prints_the_accuracy_of_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "v.csv", "vote,judge\n" + "left,[[A>B]]\n" * 3 + "right,nothing\n")
    command = ["eval", "agreement", "--dataset_name", path, "--votes", "vote", "--scores", "judge", "--unreadable", "wrong"]
    assert main([*command, "--resamples", "100"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " verdicts " in line]
    assert "0.750" in line
    assert "0.194 to " in line  # three of four: Clopper-Pearson, where a bootstrap of four ends at 0.25
