"""What votes reward is recovered from votes whose reward is planted; slips, circles and shortcuts are pointed out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from diffalign.cli.main import main
from diffalign.core.errors import ConfigError, TableError
from diffalign.data.corrections import Corrections
from diffalign.data.pictures import encode_image
from diffalign.data.readers.base import Row
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table, write_table
from diffalign.evaluate.explain.attributes import attributes, with_judge
from diffalign.evaluate.explain.contradictions import contradictions
from diffalign.evaluate.explain.directions import principal, sparse
from diffalign.evaluate.explain.looks import embedded
from diffalign.evaluate.explain.origin import predicted
from diffalign.evaluate.explain.regression import design, fit, weights
from diffalign.evaluate.explain.report import explain
from diffalign.evaluate.explain.votes import Votes, votes_of_rows, votes_of_table
from diffalign.evaluate.explain.wrong import write_corrections
from diffalign.evaluate.pages.explanation import page
from tests.pages import Page


def grey(level: float, kind: str = "PNG") -> Candidate:
    return Candidate(image=encode_image(Image.new("RGB", (16, 16), (int(level),) * 3)), scores={"level": float(level)})


def rated(weight: dict[str, float], seed: int, users: int = 1, prompts: int = 120) -> Votes:
    """Return votes on rows of numbers, by simulated users of one taste: a weight for each column."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(prompts * users):
        values = rng.normal(size=(2, len(weight)))
        gap = float((values[0] - values[1]) @ np.array(list(weight.values())))
        row = {f"{name}_{side}": values[side, k] for k, name in enumerate(weight) for side in (0, 1)}
        row |= {"prompt": f"p{number // 2}", "vote": "left" if rng.random() < expit(gap) else "right", "user_id": f"u{number % users}"}
        rows.append(Row(row, f"row {number}", str(number)))
    return votes_of_rows(rows, scores=list(weight), votes="vote")


def light(folder, seed: int = 0, pairs: int = 60, flipped: tuple[int, ...] = ()):
    """Return a table in which the brighter of two sheets is preferred, on alternating sides, but in the `flipped` records."""
    rng, records = np.random.default_rng(seed), []
    for number in range(pairs):
        low, high = sorted(rng.choice(256, 2, replace=False))
        high = max(high, low + 8) if low < 240 else high
        pair = (grey(high), grey(low)) if number % 2 else (grey(low), grey(high))
        prob = float(number % 2) if number not in flipped else 1.0 - float(number % 2)
        records.append(Record(f"r{number}", f"<b>sheet</b> {number}", pair, prob, "ann", f"mine.csv row {number}"))
    return write_table(folder, records)


def test_the_weights_of_simulated_users_are_inside_their_intervals():
    truth = {"large": 1.5, "warm": -0.7, "high": 0.0}
    covered = []
    for seed in range(3):
        votes = rated(truth, seed)
        made = design(votes, attributes(votes), position=True)
        fitted = weights(made, votes, resamples=100, seed=seed)
        true = np.array([*truth.values(), 0.0]) * made.scale
        covered += ((fitted.low <= true) & (true <= fitted.high)).tolist()
        assert dict(zip(made.names, fitted.sure, strict=True)) == {"large": True, "warm": True, "high": False, "position": False}
    assert sum(covered) >= 11  # of 12 intervals of 95 %


def test_two_users_of_opposite_tastes_are_told_apart_and_a_ridge_of_none_is_the_log_odds():
    mine, yours = rated({"large": 2.0}, 0), rated({"large": -2.0}, 1)
    both = Votes(
        *(
            np.concatenate([a, b])
            for a, b in ((mine.first, yours.first + len(mine.things)), (mine.second, yours.second + len(mine.things)))
        ),
        np.concatenate([mine.prob, yours.prob]),
        np.concatenate([mine.group, yours.group + mine.group.max() + 1]),
        mine.prompts + yours.prompts,
        mine.ids + yours.ids,
        ("me",) * len(mine) + ("you",) * len(yours),
        mine.sources + yours.sources,
        mine.things + yours.things,
    )
    facts = explain(both, attributes(both), resamples=40).facts
    ends = {row["name"]: row["weights"]["large"]["ci95"] for row in facts["users"]}
    assert ends["me"][0] > 0.5
    assert ends["you"][1] < -0.5
    assert facts["held_out"]["accuracy"] > 0.7  # by each user's own weights: everybody's are about zero
    three_of_four = fit(np.ones((4000, 1)), np.tile([1.0, 1.0, 1.0, 0.0], 1000))
    assert three_of_four[0] == pytest.approx(np.log(3.0), abs=1e-3)


def test_a_planted_liking_for_bright_pictures_is_the_finding_and_the_slip_is_first_among_what_looks_wrong(tmp_path):
    votes = votes_of_table(light(tmp_path / "t", flipped=(7,)))
    explained = explain(votes, attributes(votes, without="level"), resamples=40)
    (finding,) = [row for row in explained.facts["attributes"] if row["finding"]]
    assert (finding["name"], finding["weight"] > 1.0) == ("brightness", True)
    assert "contrast" not in [row["name"] for row in explained.facts["attributes"]]  # of plain pictures it is rounding
    assert finding["alone"] == pytest.approx(59 / 60)
    assert explained.facts["unlikely"][0]["record"] == "r7"
    assert len(explained.carried["brightness"][0]) == 3
    assert [votes.ids[i] for i in explained.carried["brightness"][1]] == ["r7"]
    write_corrections(explained, tmp_path / "wrong.jsonl", share=0.01)
    assert Corrections(tmp_path / "wrong.jsonl").labels() == {"r7": None}  # removed, unless it is asked to be turned around


def test_one_pair_both_ways_circles_of_three_and_disagreement_are_told_apart(tmp_path):
    cells = [
        ("ann", "a", "b"),
        ("ann", "b", "c"),
        ("ann", "c", "a"),
        ("bob", "b", "a"),
        ("bob", "a", "b"),
        ("cy", "c", "b"),
        ("cy", "b", "a"),
    ]
    pictures = {name: grey(level) for name, level in zip("abc", (10, 90, 200), strict=True)}
    records = [Record(str(i), "p", (pictures[better], pictures[worse]), 1.0, user) for i, (user, better, worse) in enumerate(cells)]
    votes = votes_of_table(write_table(tmp_path / "t", records))
    wrong = contradictions(votes)
    assert wrong.both_ways == [(3, 4)]
    assert [sorted(circle) for circle in wrong.circles] == [[0, 1, 2]]
    assert (wrong.repeated, wrong.shared, wrong.between_people) == (1, 2, 2)  # a-b: ann and cy; b-c: ann and cy


def test_origin_that_predicts_held_out_labels_warns_and_an_oriented_table_has_no_place(tmp_path):
    heights = np.random.default_rng(0).integers(4, 7, size=120).tolist()
    sheets = [encode_image(Image.new("RGB", (4, height), (n, n, n))) for n, height in enumerate(heights)]
    pairs = [(Candidate(image=sheets[2 * n], model="new"), Candidate(image=sheets[2 * n + 1], model="old")) for n in range(60)]
    oriented = votes_of_table(write_table(tmp_path / "o", [Record(str(n), f"p{n}", pair, 1.0) for n, pair in enumerate(pairs)]))
    columns = {one.column: one for one in predicted(oriented)}
    assert columns["model"].warns
    assert columns["model"].rule == "new wins, old loses"
    assert "position" not in columns
    assert not columns["pixels"].warns
    left = [Record(str(n), f"p{n}", pair[:: 1 if n % 10 else -1], 1.0 if n % 5 else 0.0) for n, pair in enumerate(pairs)]
    assert {one.column: one.warns for one in predicted(votes_of_table(write_table(tmp_path / "l", left)))}["position"]


def test_another_judge_differs_where_it_does_and_nowhere_else():
    votes = rated({"large": 1.0, "warm": 1.0}, 0, prompts=200)
    large = attributes(votes)["large"]
    judge = votes.relabelled(0.5 * (1.0 + np.sign(large)))
    facts = explain(votes, attributes(votes), other=("judge", judge, attributes(votes)), resamples=40).facts["against"]
    assert {row["name"]: row["clear"] for row in facts["attributes"]} == {"large": True, "warm": True, "position": False}
    assert facts["agreement"] == pytest.approx(np.mean(np.sign(large) == votes.sign), abs=0.03)  # by prompt, of which each has two
    same = explain(votes, attributes(votes), other=("same", votes, attributes(votes)), resamples=40).facts["against"]
    assert (same["agreement"], [row["difference"] for row in same["attributes"]]) == (1.0, [0.0, 0.0, 0.0])


def test_the_votes_of_another_table_are_compared_in_the_units_of_the_first(tmp_path):
    bright, dark = light(tmp_path / "bright"), light(tmp_path / "dark", flipped=tuple(range(60)))  # the same pairs, all turned around
    votes, judge = with_judge(votes_of_table(bright), str(dark.path), ["level"], rows=100, seed=0)
    facts = explain(votes, attributes(votes, ["level"]), other=judge, resamples=40).facts["against"]
    weights = {row["name"]: (row["weight"], row["other"]) for row in facts["attributes"]}
    assert weights["brightness"][0] == pytest.approx(-weights["brightness"][1], abs=1e-4)
    assert (facts["agreement"], facts["pairs_of_both"]) == (0.0, 60)


def test_directions_and_sparse_features_change_sign_with_the_order_and_find_what_was_mixed():
    rng = np.random.default_rng(0)
    features = np.linalg.qr(rng.normal(size=(12, 12)))[0][:6]
    code = np.where(rng.random((400, 6)) < 0.25, rng.normal(size=(400, 6)), 0.0)
    mixed = code @ features
    sparse_code = np.stack(list(sparse(mixed, 6, active=2).values()), axis=1)
    match = np.abs(np.corrcoef(sparse_code.T, code.T)[:6, 6:]).max(axis=0)
    assert (match > 0.8).sum() >= 5
    direction = np.array([3.0, 4.0]) / 5.0
    along = principal(np.outer(rng.normal(size=50), direction), 1)["direction 1"]
    assert np.abs(along).max() > 0.0
    turned = np.where(np.arange(400) % 2, -1.0, 1.0)[:, None]  # every second pair is written the other way round
    backward = np.stack(list(sparse(turned * mixed, 6, active=2).values()), axis=1)
    alike = np.abs((turned * backward).T @ sparse_code) / np.outer(*(np.linalg.norm(c, axis=0) for c in (backward, sparse_code)))
    assert alike.max(axis=1) == pytest.approx(np.ones(6), abs=1e-3)


def test_the_command_writes_a_page_that_fetches_nothing_and_corrections_that_data_correct_applies(tmp_path, capsys):
    light(tmp_path / "t", flipped=(7,))
    words = ["data", "explain", "--dataset_name", str(tmp_path / "t"), "--resamples", "100", "--against", "level", "--features", "pixels"]
    wrong = ["--directions", "1", "--corrections", str(tmp_path / "wrong.jsonl"), "--suspects", "0.01", "--turn", "true"]
    assert main([*words, *wrong]) == 0
    assert "1 votes that look wrong" in capsys.readouterr().out
    parsed = Page(tmp_path / "t" / "explanation.html")
    assert parsed.open == []
    assert not parsed.all("script")
    assert "<b>sheet</b>" not in parsed.source
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in parsed.all("img"))
    assert len(parsed.source) < 5e6
    facts = json.loads((tmp_path / "t" / "explanation.json").read_text())
    assert facts["against"]["agreement"] == pytest.approx(59 / 60)
    words = ["--dataset_name", str(tmp_path / "t"), "--corrections", str(tmp_path / "wrong.jsonl"), "--output_dir", str(tmp_path / "right")]
    assert main(["data", "correct", *words]) == 0
    assert read_table(tmp_path / "right")[7].prob == 1.0
    assert main(["data", "explain", "--dataset_name", str(tmp_path / "t"), "--corrections", str(tmp_path / "wrong.jsonl")]) == 2


def test_few_votes_at_random_have_no_interval_and_no_finding(tmp_path, capsys):
    """Eight votes on nine attributes are told to the last one by any weights; their redraws are sure of it."""
    votes = rated(dict.fromkeys("abcdefgh", 0.0), seed=0, prompts=16)
    facts = explain(votes, attributes(votes), resamples=40).facts
    assert facts["votes"]["needed"] == 27
    assert all(np.isnan(row["ci95"]).all() and not row["finding"] for row in facts["attributes"])
    assert main(["data", "explain", "--dataset_name", str(light(tmp_path / "t", pairs=8).path), "--resamples", "100"]) == 0
    assert "no intervals and no findings of 8 decided votes" in capsys.readouterr().out
    assert "decided votes, or fewer attributes" in (tmp_path / "t" / "explanation.html").read_text()


def test_what_cannot_be_explained_is_refused_by_name(tmp_path):
    table = light(tmp_path / "t", pairs=8)
    votes = votes_of_table(table)
    with pytest.raises(ConfigError, match=r"levl.*level"):
        attributes(votes, ["levl"])
    with pytest.raises(ConfigError, match=r"levl.*level"):
        with_judge(votes, "levl", [], rows=10, seed=0)
    with pytest.raises(TableError, match="no vote"):
        votes_of_table(write_table(tmp_path / "alone", [Record("0", "p", (grey(3),), 1.0)]))
    rows = [Row({"prompt": "p", "vote": "left"}, "row 0", "0")]
    with pytest.raises(ConfigError, match="size_0"):
        votes_of_rows(rows, scores=["size"], votes="vote")
    texts = write_table(tmp_path / "q", [Record("0", "p", (Candidate(text="a"), Candidate(text="b")), 1.0)])
    with pytest.raises(TableError, match="a table of texts"):
        embedded(votes_of_table(texts), "pixels", "cpu")
    with pytest.raises(TableError, match="all 2 votes are ties"):
        votes_of_table(write_table(tmp_path / "even", [Record(f"{n}", "p", (grey(3), grey(n)), 0.5) for n in (4, 5)]))
    for flags in (["--prompt", "x"], ["--sparse_code", "4"], ["--suspects", "2"], ["--directions", "0"], ["--resamples", "3"]):
        assert main(["data", "explain", "--dataset_name", str(tmp_path / "t"), *flags]) == 2


def test_columns_without_candidates_have_a_page_and_a_place_that_wins_is_called_so():
    rows = [Row({"prompt": f"p{n // 2}", "vote": "left" if n % 4 else "right"}, f"row {n}", str(n)) for n in range(80)]
    votes = votes_of_rows(rows, votes="vote")
    explained = explain(votes, attributes(votes), resamples=40)
    (place,) = explained.facts["attributes"]
    assert (place["name"], place["finding"], place["alone"]) == ("position", True, 0.75)
    source = page(explained, title="votes", meanings={})
    assert "reward being shown first" in source
    assert "<img" not in source
