"""What transforms say of records reaches batches: prompts, weights, offsets and the columns that objectives read."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from PIL import Image

from diffalign.core.errors import TableError
from diffalign.data.batch import CachedPairs, Encoders, LivePairs
from diffalign.data.labels import labels_of
from diffalign.data.pictures import encode_image
from diffalign.data.pixels import Framing
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.table import from_row, to_row, write_table
from diffalign.data.transforms import drop_ties, offset_by, orient, pairs, reward_conditioned, semantic_weight, weighted
from diffalign.data.view import View

SCORES = [({"s": 7.0, "distance": 0.0}, {"s": 1.0, "distance": 1.0}), ({"s": 2.0, "distance": 0.9}, {"s": 4.0, "distance": 0.5})]


def records(kind="text", **fields):
    """Return a pair whose first candidate is preferred and one whose second is."""
    for number, scores in enumerate(SCORES):
        content = [{kind: f"answer {i}"} if kind == "text" else {kind: picture(2 * number + i)} for i in range(2)]
        shown = tuple(Candidate(**own, scores=s) for own, s in zip(content, scores, strict=True))
        yield Record(f"r{number}", ["a star", "a ring"][number], shown, 1.0 - number, source=f"row {number}", **fields)


def picture(number):
    return encode_image(Image.new("RGB", (4, 4), (60 * number, 0, 0)))


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "table", records())


def test_columns_follow_the_order_of_the_candidates(table):
    view = View(table, [orient], columns={"gains": "s", "far": "distance"})
    assert [entry.columns for entry in view.entries] == [((7.0, 1.0), (0.0, 1.0)), ((4.0, 2.0), (0.5, 0.9))]
    labels = labels_of(view, view.entries)
    assert labels.columns["gains"].tolist() == [[7.0, 1.0], [4.0, 2.0]]
    assert labels.columns["far"].shape == (2, 2)
    assert labels.weight is None
    assert labels.offset is None


def test_a_view_without_columns_has_none(table):
    view = View(table, [orient])
    assert labels_of(view, view.entries).columns == {}


def test_weights_and_offsets_are_those_of_the_transforms(table):
    view = View(table, [orient, partial(semantic_weight, alpha=2.0), partial(offset_by, score="s", log=False)])
    labels = labels_of(view, view.entries)
    assert labels.weight is not None
    assert labels.weight.tolist() == pytest.approx([1.0, 0.36787944])  # exp(-2 * 0.5)
    assert labels.offset is not None
    assert labels.offset.tolist() == [6.0, 2.0]
    assert [own.offset for own in view] == [6.0, 2.0]


def test_records_that_nobody_weighed_count_fully_beside_others(table):
    def weigh_one(record):
        return semantic_weight(record, alpha=1.0) if record.id == "r1" else (record,)

    view = View(table, [orient, weigh_one])
    labels = labels_of(view, view.entries)
    assert labels.weight is not None
    assert labels.weight.tolist() == pytest.approx([1.0, 0.60653066])  # exp(-0.5)


def test_scores_that_transforms_make_are_columns_too(table):
    view = View(table, [orient, partial(weighted, scores={"s": 1.0, "distance": 10.0}, into="margin")], columns={"margin": "margin"})
    assert [entry.columns for entry in view.entries] == [((7.0, 11.0),), ((9.0, 11.0),)]


def test_a_column_whose_score_is_missing_is_named_with_its_cure(table):
    with pytest.raises(TableError, match=r"table: .*`gains`.*`distanc` .* row 0.*`distance`"):
        View(table, [], columns={"gains": "distanc"})
    with pytest.raises(TableError, match=r"distance, s.*\{gains: NAME\}"):
        View(table, [], columns={"gains": "gains"})


def test_a_missing_column_of_a_table_without_scores_says_so(tmp_path):
    bare = write_table(tmp_path / "bare", [Record("r", "p", (Candidate(text="a"), Candidate(text="b")), 1.0, source="row 0")])
    with pytest.raises(TableError, match=r"`gains` .* row 0"):
        View(bare, [], columns={"gains": "gains"})


def test_a_view_gives_the_prompt_and_the_messages_that_transforms_made(tmp_path):
    goal = partial(reward_conditioned, score="s", template="Earn {goal}.")
    view = View(write_table(tmp_path / "plain", records()), [orient, goal])
    assert [own.prompt for own in view] == [f"Earn {n}.\n\na {what}" for n, what in ((7, "star"), (1, "star"), (4, "ring"), (2, "ring"))]
    talks = View(write_table(tmp_path / "talks", records(messages=(Message("user", "a star"),))), [orient, goal])
    assert talks[1].messages == (Message("system", "Earn 1."), Message("user", "a star"))
    assert talks.entries[1].messages == talks[1].messages
    assert [c.text for c in talks[1].candidates] == ["answer 1", "answer 0"]


def test_weights_are_not_kept_in_tables():
    (kept, _) = records()
    (weighed,) = semantic_weight(kept)
    assert "weight" not in to_row(weighed)
    assert from_row(to_row(weighed)) == kept


def encoders():
    def image(pixels, noise):
        return pixels.mean((2, 3))[:, :1, None, None] + 0.0 * noise

    def prompt(prompts):
        return {"embeds": torch.tensor([[float(sum(map(ord, own)))] for own in prompts])}

    return Encoders(image, prompt, lambda height, width: (1, 1, 1), "fake")


def test_batches_carry_labels_and_made_prompts_live_and_cached(tmp_path):
    goal = partial(reward_conditioned, score="s", template="Earn {goal}.")
    chain = [pairs, drop_ties, orient, partial(semantic_weight, alpha=1.0), goal]
    view = View(write_table(tmp_path / "table", records("image")), chain, columns={"gains": "s"})
    for source in (LivePairs(view, encoders(), Framing(4), 1), CachedPairs(view, encoders(), Framing(4), 1, tmp_path)):
        batch = source.to_batch([source[position, 0] for position in range(4)])
        assert batch.ids == ("r0/high", "r0/low", "r1/high", "r1/low")
        assert batch.labels.columns["gains"].tolist() == [[7.0, 1.0], [1.0, 7.0], [4.0, 2.0], [2.0, 4.0]]
        assert batch.labels.weight is not None
        assert batch.labels.weight.tolist() == pytest.approx([1.0, 1.0, 0.60653066, 0.60653066])
        assert batch.condition["embeds"].flatten().tolist() == [sum(map(ord, own.prompt)) for own in view]


def test_prompts_that_transforms_made_do_not_use_the_cache_of_others(tmp_path):
    table = write_table(tmp_path / "table", records("image"))
    views = [View(table, [orient, partial(reward_conditioned, score="s", template=text)]) for text in ("Earn {goal}.", "Get {goal}.")]
    for view in (View(table, [orient]), *views):
        source = CachedPairs(view, encoders(), Framing(4), 1, tmp_path)
        batch = source.to_batch([source[position, 0] for position in range(len(view))])
        assert batch.condition["embeds"].flatten().tolist() == [sum(map(ord, own.prompt)) for own in view]
    assert len(list(tmp_path.glob("prompts-*"))) == 3
    assert len(list(tmp_path.glob("latents-*"))) == 1
