"""What is known of a training user: features of other pairs, preferred first, states of other chunks; computed once."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Candidate
from diffalign.data.table import write_table
from diffalign.data.transforms import singles
from diffalign.data.users import Users
from diffalign.data.view import View
from diffalign.models.users.encoders import Sizes
from diffalign.models.users.evidence import (
    ChoicesEvidence,
    IndexEvidence,
    SliderEvidence,
    StatesEvidence,
    VectorEvidence,
    choice,
    read_profiles,
    read_vectors,
)
from diffalign.models.users.settings import PairsSettings, SliderSettings, VlmSettings
from tests.data.voters import number_of, view_of, votes

COUNTS = [("ann", 5), ("bob", 9)]
SHOTS = 3


class Numbers:
    """Features of a picture: its number and one; counts the pictures it sees."""

    width = 2

    def __init__(self, fingerprint="numbers"):
        self.fingerprint, self.source, self.seen = fingerprint, f"the {fingerprint}", 0

    def __call__(self, images):
        self.seen += len(images)
        return torch.tensor([[float(number_of(image)), 1.0] for image in images])


class Reader:
    """A vision-language model whose states are the numbers of the pictures it is shown; counts its users."""

    rows, width, fingerprint, source = 2, 2 * SHOTS, "reader", "reader"

    def __init__(self):
        self.asked = 0

    def __call__(self, choices):
        self.asked += 1
        shown = [float(number_of(image)) for known in choices for image in (known.preferred, known.dispreferred)]
        return torch.tensor([shown, shown]), "a text"


@pytest.fixture(scope="module", params=[2, 3], ids=["pairs", "rankings"])
def view(request, tmp_path_factory):
    return view_of(tmp_path_factory.mktemp("votes"), votes(COUNTS, shown=request.param))


def places(view, position):
    """Return the numbers of a record's pictures, the preferred one's first."""
    return [number_of(picture) for picture in (choice(view, position).preferred, choice(view, position).dispreferred)]


def draws(evidence, position, count=40):
    return [evidence(position, np.random.default_rng(seed)) for seed in range(count)]


def test_a_choice_is_the_record_preferred_picture_first(tmp_path):
    view = view_of(tmp_path, votes([("ann", 2)]))
    assert [places(view, position) for position in range(2)] == [[0, 1], [3, 2]]
    assert choice(view, 1).prompt == "prompt 1"


def test_the_evidence_is_features_of_other_rows_preferred_first(view, tmp_path):
    users = Users.of(view)
    evidence = ChoicesEvidence(view, users, Numbers(), PairsSettings(max_shots=SHOTS), tmp_path)
    assert evidence.sizes == Sizes(("ann", "bob"), 2, source="the numbers")
    known = {position: places(view, position) for position in range(len(view))}
    for position in (0, len(view) - 1):
        others = [known[other] for other in users.evidence_positions(position).tolist()]
        row = {number for other, entry in enumerate(view.entries) if entry.row == view.entries[position].row for number in known[other]}
        for drawn in draws(evidence, position):
            assert drawn.keys() == {"user", "user_mask", "user_query"}
            assert drawn["user_query"].tolist() == [[number, 1.0] for number in known[position]]
            count = int(drawn["user_mask"].sum())
            assert drawn["user_mask"].tolist() == [1.0] * count + [0.0] * (SHOTS - count)
            assert not drawn["user"][count:].any()
            seen = [pair[:, 0].int().tolist() for pair in drawn["user"][:count]]
            assert all(pair in others for pair in seen)
            assert not row & set(itertools.chain(*seen))
            assert len({tuple(pair) for pair in seen}) == count


def test_training_reads_as_many_pairs_as_there_are_and_room_for(tmp_path):
    view = view_of(tmp_path, votes([("ann", 5)]))
    for shots, count in ((2, 2), (4, 4), (16, 4)):
        evidence = ChoicesEvidence(view, Users.of(view), Numbers(), PairsSettings(max_shots=shots), tmp_path / "cache")
        assert {int(row["user_mask"].sum()) for row in draws(evidence, 0)} == {count}
        assert len({tuple(row["user"][:2, 0, 0].tolist()) for row in draws(evidence, 0, 200)}) == 12  # two of four, in either order


def test_the_encoder_is_fitted_to_a_log_uniform_number_of_pairs(tmp_path):
    view = view_of(tmp_path, votes([("ann", 5)]))
    evidence = ChoicesEvidence(view, Users.of(view), Numbers(), PairsSettings(max_shots=SHOTS), tmp_path / "cache")
    drawn = [evidence.few(0, np.random.default_rng(seed)) for seed in range(1500)]
    counts = [int(row["user_mask"].sum()) for row in drawn]
    for count in (1, 2, 3):
        # of a uniform logarithm up to log 4, what lies between log count and log (count + 1); the standard error is 0.013
        assert counts.count(count) / 1500 == pytest.approx(math.log((count + 1) / count) / math.log(4), abs=0.05)
    assert all(row["user_query"].tolist() == drawn[0]["user_query"].tolist() for row in drawn)


def test_features_are_computed_once_for_each_network_that_sees(view, tmp_path):
    def made(features):
        evidence = ChoicesEvidence(view, Users.of(view), features, PairsSettings(), tmp_path)
        return evidence.read(range(len(view))), features.seen

    pictures = len({number for position in range(len(view)) for number in places(view, position)})
    first, seen = made(Numbers())
    assert seen == pictures == 14 * len(view.table[0].candidates)
    again, unseen = made(Numbers())
    assert unseen == 0
    assert torch.equal(first, again)
    assert made(Numbers("another"))[1] == pictures


def test_a_variational_encoder_gets_its_noise_with_the_evidence(view, tmp_path):
    evidence = ChoicesEvidence(view, Users.of(view), Numbers(), PairsSettings(hidden=7, variational=True), tmp_path)
    first, again, other = (evidence(0, np.random.default_rng(seed))["user_noise"] for seed in (0, 0, 1))
    assert first.shape == (7,)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_picture_that_does_not_decode_is_named(tmp_path):
    good, bad = votes([("ann", 2)])
    broken = replace(bad, candidates=(bad.candidates[0], Candidate(image=b"no picture")))
    view = view_of(tmp_path, [good, broken])
    with pytest.raises(RecordError, match="row 1, candidate 1:"):
        ChoicesEvidence(view, Users.of(view), Numbers(), PairsSettings(), tmp_path / "cache")


def reading(view, folder, states=None, **settings):
    return StatesEvidence(view, Users.of(view), states or Reader(), VlmSettings(model="m", shots=SHOTS, **settings), folder)


@pytest.fixture
def long(tmp_path):
    """Return users with whole chunks of three and a rest: 7 rows are two, 11 are three."""
    return view_of(tmp_path, votes([("ann", 7), ("bob", 11)]))


def test_chunks_are_whole_disjoint_and_in_random_order(long, tmp_path):
    evidence = reading(long, tmp_path)
    assert evidence.sizes == Sizes(("ann", "bob"), 2 * SHOTS, 2, "reader")
    assert [len(own) for own in evidence.chunks] == [2, 3]
    known = [places(long, position) for position in range(len(long))]
    for own in evidence.chunks:
        rows = [row for chunk, _ in own for row in chunk.tolist()]
        assert len(set(rows)) == SHOTS * len(own)
        assert rows != sorted(rows)
        for chunk, states in own:
            assert states[0].tolist() == list(itertools.chain(*(known[row] for row in chunk)))  # preferred first


def test_the_states_never_come_from_a_chunk_with_the_record(long, tmp_path):
    evidence = reading(long, tmp_path)
    for position in range(len(long)):
        own = set(places(long, position))
        found = {tuple(drawn["user"][0].int().tolist()) for drawn in draws(evidence, position)}
        assert all(not own & set(states) for states in found)
        others = [chunk for chunk, _ in evidence.chunks[evidence.users.owner[position]] if long.entries[position].row not in chunk]
        assert len(found) == len(others) >= 1


def test_the_pairs_of_a_ranking_are_one_row_to_a_chunk(tmp_path):
    ranked = view_of(tmp_path, votes([("ann", 6)], shown=3))
    evidence = reading(ranked, tmp_path / "cache")
    assert len(evidence.chunks[0]) == 2
    for position, entry in enumerate(ranked.entries):
        for drawn in draws(evidence, position, 5):
            assert all(number // 3 != entry.row for number in drawn["user"][0].int().tolist())


def test_a_user_gives_so_many_chunks_at_most_and_is_read_once(long, tmp_path):
    states = Reader()
    first = reading(long, tmp_path, states, per_user=2)
    assert [len(own) for own in first.chunks] == [2, 2]
    assert states.asked == 4
    again = reading(long, tmp_path, states, per_user=2)
    assert states.asked == 4
    assert torch.equal(first.chunks[1][0][1], again.chunks[1][0][1])
    reading(long, tmp_path, states)
    assert states.asked == 5


def repeated(count):
    """Return records of one user, all of which show the first one's first picture."""
    first, *rest = votes([("ann", count)])
    return [first, *(replace(record, candidates=(first.candidates[0], record.candidates[1])) for record in rest)]


def test_a_record_whose_pictures_all_others_show_is_nobodys(tmp_path, caplog):
    view = view_of(tmp_path, repeated(2 * SHOTS))
    evidence = ChoicesEvidence(view, Users.of(view), Numbers(), PairsSettings(max_shots=SHOTS), tmp_path / "choices")
    for drawn in (evidence(2, np.random.default_rng(0)), evidence.few(2, np.random.default_rng(0))):
        assert drawn["user"].shape == (SHOTS, 2, 2)
        assert not drawn["user"].any()
        assert not drawn["user_mask"].any()
        assert drawn["user_query"][:, 0].tolist() == places(view, 2)
    assert not reading(view, tmp_path / "states")(2, np.random.default_rng(0))["user"].any()
    said = [record.getMessage() for record in caplog.records]
    assert [message.startswith("6 of 6 records share a picture with all that their user has chosen") for message in said] == [True, True]


def test_the_states_never_come_from_a_chunk_that_shows_the_records_pictures(tmp_path):
    records = votes([("ann", 3 * SHOTS)])
    records[1] = replace(records[1], candidates=records[0].candidates)
    view = view_of(tmp_path, records)
    evidence = reading(view, tmp_path)
    for position in (0, 1):
        for drawn in draws(evidence, position):
            assert drawn["user"].any()
            assert not {0, 1} & set(drawn["user"][0].int().tolist())


def test_an_index_and_numbers_are_those_of_the_records_user(view):
    users = Users.of(view)
    index, vectors = IndexEvidence(users), VectorEvidence(users, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert vectors.sizes == Sizes(("ann", "bob"), 3)
    for position in (0, len(view) - 1):
        owner = ("ann", "bob").index(view.entries[position].user)
        rng = np.random.default_rng(0)
        assert index(position, rng)["user"] == owner
        assert vectors(position, rng)["user"].tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]][owner]


def write(folder, known):
    (folder / "users.json").write_text(known if isinstance(known, str) else json.dumps(known))
    return str(folder / "users.json")


def test_files_about_users_are_read_in_the_order_of_the_users(tmp_path):
    texts = write(tmp_path, {"bob": "likes blue", "eve": "likes all", "ann": "likes red"})
    assert read_profiles(texts, ("ann", "bob")) == ["likes red", "likes blue"]
    vectors = read_vectors(write(tmp_path, {"bob": [3, 4.5], "ann": [1, 2]}), ("ann", "bob"))
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[1.0, 2.0], [3.0, 4.5]]


@pytest.mark.parametrize(
    ("read", "known", "sentence"),
    [
        (read_profiles, {"ann": "likes red"}, r"users\.json: has no text for user 'bob'; expected \{user: text\}"),
        (read_profiles, {"ann": "likes red", "bob": 3}, "has no text for user 'bob'"),
        (read_profiles, {"ann": "likes red", "bob": " "}, "has no text for user 'bob'"),
        (read_profiles, ["likes red"], r"`profiles` .*users\.json holds a list; expected \{user: text\}"),
        (read_profiles, "{", r"`profiles` .*users\.json cannot be read"),
        (read_vectors, {"ann": [1, 2]}, r"expected equally many numbers for every user of the training; found \[0, 2\]"),
        (read_vectors, {"ann": [1, 2], "bob": [1]}, r"found \[1, 2\]"),
        (read_vectors, {"ann": [], "bob": []}, r"found \[0\]"),
        (read_vectors, {"ann": 1, "bob": 2}, r"found \[0\]"),
        (read_vectors, {"ann": [1], "bob": ["two"]}, r"expected \{user: \[number, \.\.\.\]\}"),
        (read_vectors, {"ann": [[1, 2]], "bob": [[3, 4]]}, "lists in a list"),
        (read_vectors, {"ann": [1.0], "bob": [math.nan]}, "NaN"),
        (read_vectors, "", r"`vectors` .*users\.json cannot be read"),
    ],
)
def test_a_file_that_does_not_know_the_users_says_what_it_lacks(tmp_path, read, known, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read(write(tmp_path, known), ("ann", "bob"))


def test_a_file_that_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"`user_encoder`: `vectors` nowhere\.json .*JSON"):
        read_vectors("nowhere.json", ("ann",))


def test_sliders_are_levels_of_the_records_scores_and_each_is_off_now_and_then(tmp_path):
    records = []
    for number, record in enumerate(votes([("ann", 5)])):
        scores = [{"size": float(place + number), "age": 1.0 - number} for place in range(2)]
        records.append(replace(record, candidates=tuple(replace(c, scores=own) for c, own in zip(record.candidates, scores, strict=True))))
    view = View(write_table(tmp_path / "table", records), [partial(singles, score=None)], columns={"age": "age", "size": "size"})
    evidence = SliderEvidence(view, SliderSettings(attributes=["size", "age"], dropout=0.0))
    assert len(view) == 10
    # sizes 0 1 1 2 2 3 3 4 4 5 of the records' first and second candidates: 0 and 5 lie at the ends, ages fall from 1 to -3
    values = torch.stack([evidence(position, np.random.default_rng(0))["user"] for position in range(10)])
    assert values[0].tolist() == [0.0, pytest.approx(1.0, abs=0.06)]
    assert values[9].tolist() == [1.0, pytest.approx(0.0, abs=0.06)]
    assert values[1, 0] == values[2, 0]
    assert (values[:, 0].sort().values == values[:, 0]).all()
    often = SliderEvidence(view, SliderSettings(attributes=["size", "age"], dropout=0.25))
    rng = np.random.default_rng(0)
    off = torch.stack([often(3, rng)["user"] for _ in range(400)]).isnan().double()
    # shares of 400 fair draws at 0.25 (deviation 0.022), of both at 0.0625 (0.012)
    assert (off.mean(dim=0) - 0.25).abs().max() < 0.07
    assert abs(off.prod(dim=1).mean() - 0.0625) < 0.04
    assert torch.equal(often.quantiles, evidence.quantiles)
    assert often.sizes == evidence.sizes
