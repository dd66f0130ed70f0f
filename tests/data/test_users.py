"""Users are sampled uniformly, all of a user's records come up, and what is known of a user never includes the record learned from."""

from __future__ import annotations

import collections
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffalign.core.errors import TableError
from diffalign.core.types import Batch, Noised, Query
from diffalign.data.records import Candidate
from diffalign.data.sampler import Sampler
from diffalign.data.users import EDGE, UserPairs, Users
from diffalign.data.view import with_users
from diffalign.models.users.evidence import IndexEvidence
from tests.data.voters import view_of, votes

COUNTS = [("ann", 3), ("bob", 30), ("cy", 7)]


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return view_of(tmp_path_factory.mktemp("votes"), votes(COUNTS))


@pytest.fixture(scope="module")
def users(view):
    return Users.of(view, seed=5)


class Plain:
    """Pairs whose rows are their positions, with or without a query drawn before."""

    buckets = None

    def __init__(self, count, drawn=False):
        self.count, self.drawn = count, drawn

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"x0": torch.full((2, 1, 1, 1), float(index[0])), "id": str(index[0])}

    def to_batch(self, rows):
        x0 = torch.stack([row["x0"] for row in rows])
        words = {"prompt_embeds": x0[:, :1, 0, 0]}
        ones = torch.ones(len(rows))
        query = Query(Noised(x0, ones, x0, ones), words) if self.drawn else None
        return Batch(x0, words, {"prompt_embeds": torch.zeros(1, 1, 1)}, ones, tuple(row["id"] for row in rows), query)


def drawing(users, dropout=0.0, drawn=False):
    """Return data whose evidence is the user's index and two of their other positions, in the order drawn."""

    def evidence(position, rng):
        return {"user": torch.from_numpy(rng.choice(users.evidence_positions(position), 2, replace=False))}

    return UserPairs(Plain(len(users.rows), drawn), users, evidence, dropout, users.seed)


def test_users_and_their_records_are_found(users):
    assert users.names == ("ann", "bob", "cy")
    assert [own.tolist() for own in users.positions] == [[0, 1, 2], list(range(3, 33)), list(range(33, 40))]
    assert users.owner.tolist() == [0] * 3 + [1] * 30 + [2] * 7


def test_a_round_takes_every_user_once_however_many_pairs_they_have(users):
    for turn in range(50):
        positions = [users.index(3 * turn + place) for place in range(3)]
        assert sorted(users.owner[position] for position, _ in positions) == [0, 1, 2]
        assert {taken for _, taken in positions} == {turn}


def test_the_order_of_users_changes_from_round_to_round(users):
    orders = {tuple(users.owner[users.index(3 * turn + place)[0]] for place in range(3)) for turn in range(50)}
    assert len(orders) == 6


def test_all_records_of_a_user_come_up_before_any_comes_again(users):
    seen = collections.Counter(users.index(sample)[0] for sample in range(3 * 210))  # 210 rounds: 70 cycles of 3, 7 of 30, 30 of 7
    assert seen == {**dict.fromkeys(range(3), 70), **dict.fromkeys(range(3, 33), 7), **dict.fromkeys(range(33, 40), 30)}
    for cycle in range(4):
        rounds = range(30 * cycle, 30 * cycle + 30)
        own = [next(p for p in (users.index(3 * turn + i)[0] for i in range(3)) if users.owner[p] == 1) for turn in rounds]
        assert sorted(own) == list(range(3, 33))


def test_another_seed_draws_otherwise_and_the_same_one_alike(view, users):
    def first(seed):
        return [Users.of(view, seed).index(sample) for sample in range(60)]

    assert first(5) == [users.index(sample) for sample in range(60)]
    assert first(5) != first(6)


def test_evidence_never_shares_a_row_with_the_record(tmp_path):
    # Rankings of three become three pairs of one row, each of which would tell of the others.
    ranked = view_of(tmp_path, votes([("ann", 4), ("bob", 2)], shown=3))
    users = Users.of(ranked)
    assert len(ranked) == 18
    for position, entry in enumerate(ranked.entries):
        others = users.evidence_positions(position)
        assert len(others) == 3 * (3 if entry.user == "ann" else 1)
        assert {ranked.entries[other].user for other in others} == {entry.user}
        assert entry.row not in {ranked.entries[other].row for other in others}


def test_a_draw_belongs_to_a_record_and_a_round(users):
    data, again = drawing(users, dropout=0.5), drawing(users, dropout=0.5)
    draws = {(p, turn): data[p, turn]["evidence"] for p in range(3, 33) for turn in range(4)}
    for index, drawn in draws.items():
        repeated = again[index]["evidence"]
        assert drawn.keys() == repeated.keys() == {"user_kept", "user"}
        assert all(torch.equal(drawn[name], repeated[name]) for name in drawn)
    assert len({tuple(draws[3, turn]["user"].tolist()) for turn in range(4)}) > 1


def test_the_order_of_the_evidence_is_shuffled(users):
    data = drawing(users)
    drawn = [tuple(data[0, turn]["evidence"]["user"].tolist()) for turn in range(40)]
    assert set(drawn) == {(1, 2), (2, 1)}


def shared(records, *pairs):
    """Return records, one of which shows the pictures of another: (whose place, who else's picture, of which place) each."""
    records = list(records)
    for place, number, other, theirs in pairs:
        candidates = list(records[number].candidates)
        candidates[place] = records[other].candidates[theirs]
        records[number] = replace(records[number], candidates=tuple(candidates))
    return records


def test_evidence_never_shows_a_picture_of_the_record(tmp_path):
    # 1 shows a picture of 0, in the other place; 2 is 3 once more; 4 shares with somebody else's alone
    records = shared(votes([("ann", 4), ("bob", 2)]), (1, 1, 0, 0), (0, 2, 3, 0), (1, 2, 3, 1), (0, 4, 0, 0))
    users = Users.of(view_of(tmp_path, records))
    assert [users.evidence_positions(position).tolist() for position in range(6)] == [[2, 3], [2, 3], [0, 1], [0, 1], [5], [4]]
    assert users.without_evidence() == 0


def test_pictures_are_told_apart_by_their_ends_and_length(tmp_path):
    first = b"a" * EDGE + b"b" * 10 * EDGE + b"c" * EDGE
    contents = [first, first + b"c", b"d" + first[1:], first[:-1] + b"d", first]
    records = votes([("ann", 5)])
    for place, content in enumerate(contents):
        candidates = (Candidate(image=content), records[place].candidates[1])
        records[place] = replace(records[place], candidates=candidates, prob=1.0)
    users = Users.of(view_of(tmp_path, records))
    assert [users.evidence_positions(position).tolist() for position in (0, 1)] == [[1, 2, 3], [0, 2, 3, 4]]


def test_records_that_share_a_picture_with_all_others_of_their_user_are_counted(tmp_path):
    records = shared(votes([("ann", 3), ("bob", 2)]), (0, 1, 0, 0), (0, 2, 0, 0), (0, 3, 0, 0))
    users = Users.of(view_of(tmp_path, records))
    assert users.without_evidence() == 3
    assert [len(users.evidence_positions(position)) for position in range(5)] == [0, 0, 0, 1, 1]


def test_the_share_of_dropped_users_is_the_one_asked_for(users):
    for dropout in (0.0, 0.3, 1.0):
        data = drawing(users, dropout)
        kept = np.mean([data[p, turn]["evidence"]["user_kept"].item() for p in range(40) for turn in range(50)])
        # 2000 draws: the standard error is 0.01
        assert kept == pytest.approx(1.0 - dropout, abs=0.04 if 0.0 < dropout < 1.0 else 0.0)


def test_dropping_a_user_leaves_the_rest_of_the_draw_alone(users):
    kept, dropped = drawing(users)[7, 2]["evidence"], drawing(users, 1.0)[7, 2]["evidence"]
    assert (kept["user_kept"], dropped["user_kept"]) == (1.0, 0.0)
    assert torch.equal(kept["user"], dropped["user"])


@pytest.mark.parametrize("drawn", [False, True], ids=["live", "drawn before"])
def test_a_batch_says_who_chose_beside_what_was_asked(users, drawn):
    data = drawing(users, drawn=drawn)
    batch = data.to_batch([data[0, 0], data[9, 4]])
    assert batch.ids == ("0", "9")
    conditions = [batch.condition] if batch.query is None else [batch.condition, batch.query.condition]
    assert (batch.query is not None) is drawn
    for condition in conditions:
        assert condition.keys() == {"prompt_embeds", "user_kept", "user"}
        assert condition["prompt_embeds"].flatten().tolist() == [0.0, 9.0]
        assert torch.equal(condition["user"], torch.stack([data[0, 0]["evidence"]["user"], data[9, 4]["evidence"]["user"]]))
    assert batch.empty.keys() == {"prompt_embeds"}


@pytest.mark.parametrize("division", [(12, 1, 1), (4, 3, 1), (2, 3, 2), (1, 12, 1), (3, 1, 4)])
def test_batch_accumulation_and_processes_divide_the_same_samples(users, division):
    batch, accumulation, processes = division
    samplers = [Sampler(40, batch, accumulation, processes, rank, 5, None, users.index) for rank in range(processes)]
    for step in (0, 7):
        blocks = [sampler.indices(sampler.samples(step, micro)) for micro in range(accumulation) for sampler in samplers]
        assert [index for block in blocks for index in block] == [users.index(sample) for sample in range(12 * step, 12 * step + 12)]


def test_going_on_at_a_step_takes_the_samples_of_an_uninterrupted_run(users):
    sampler = Sampler(40, 4, 1, 1, 0, 5, None, users.index)
    assert list(sampler.batches(3, 9)) == list(sampler.batches(0, 9))[3:]


def test_users_with_too_few_pairs_are_left_out_and_counted(tmp_path, caplog):
    view = view_of(tmp_path, votes([("ann", 1), (None, 4), ("bob", 3), ("cy", 2)]))
    with caplog.at_level(logging.INFO):
        assert with_users(view, 2) is view
    assert collections.Counter(entry.user for entry in view.entries) == {"bob": 3, "cy": 2}
    assert "5 of 10 records are left out: they name no user, or one with fewer than 2 pairs; 2 users are left" in caplog.text
    assert [record.user for record in view] == ["bob"] * 3 + ["cy"] * 2


def test_where_all_records_stay_nothing_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert len(with_users(view_of(tmp_path, votes([("ann", 2), ("bob", 2)])), 2)) == 4
    assert caplog.records == []


def test_the_pairs_of_one_ranking_count_as_one_row(tmp_path):
    view = view_of(tmp_path, votes([("ann", 1), ("bob", 2)], shown=3))
    assert {entry.user for entry in with_users(view, 2).entries} == {"bob"}


def test_data_without_enough_of_any_user_are_refused(tmp_path):
    view = view_of(tmp_path, votes([("ann", 3), ("bob", 1)]))
    with pytest.raises(TableError, match=r"8 labelled pairs.*2 named users.*3 pairs.*user_id"):
        with_users(view, 8)
    with pytest.raises(TableError, match=r"0 named users.*0 pairs"):
        with_users(view_of(tmp_path / "other", votes([(None, 4)])), 2)


def test_one_user_alone_can_be_learned_from(tmp_path):
    users = Users.of(view_of(tmp_path, votes([("ann", 2)])))
    assert [users.index(sample)[1] for sample in range(4)] == [0, 1, 2, 3]
    assert IndexEvidence(users)(1, np.random.default_rng(0)) == {"user": torch.tensor(0)}
    assert users.evidence_positions(0).tolist() == [1]
