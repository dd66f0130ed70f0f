"""A view of texts becomes batches of token ids, each record once, with the same numbers in every process."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffalign.core.errors import TableError
from diffalign.data.records import Candidate
from diffalign.data.sampler import Sampler, loader
from diffalign.data.transforms import pairs as ranked_pairs
from diffalign.data.view import View
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.template import Template
from diffalign.models.text.truncation import Limit
from tests.models.text.models import tokenizer
from tests.models.text.tables import chat_record, lists, real_records, text_record, view_of

TEMPLATE = Template(tokenizer())
RECORDS = [
    text_record("Write a word:", " red", " blue and green", number=0),
    text_record("A photo of a red circle above a blue square, painted by hand. Another one:", " no", " yes", number=1),
    text_record("What?", " seven", " seven", number=2),
]


def made(folder, records=RECORDS, *, template=TEMPLATE, limit=Limit(), **options) -> TextPairs:  # noqa: B008  # frozen
    return TextPairs(view_of(folder, records), template, limit, **options)


def batch_of(pairs: TextPairs, positions=None):
    return pairs.to_batch([pairs[i, 0] for i in positions or range(len(pairs))])


def as_lists(rows) -> list[list[list[int]]]:
    return [[ids.tolist() for ids in own] for own in rows]


def test_a_batch_holds_the_ids_of_its_records_in_order(tmp_path):
    pairs = made(tmp_path)
    batch = batch_of(pairs, [2, 0])
    expected = [lists(record) for record in TEMPLATE.encode([RECORDS[2], RECORDS[0]])]
    assert as_lists(batch.prompts) == [prompts for prompts, _ in expected]
    assert as_lists(batch.completions) == [completions for _, completions in expected]
    assert {ids.dtype for own in (*batch.prompts, *batch.completions) for ids in own} == {torch.int64}
    assert batch.ids == ("2", "0")
    assert batch.prob.tolist() == [1.0, 1.0]
    assert batch.reference is None


def test_real_pairs_of_texts_and_conversations_come_through_one_table(tmp_path):
    records = real_records()
    pairs = made(tmp_path, records, limit=Limit(4096))
    batch = batch_of(pairs)
    expected = [lists(record) for record in TEMPLATE.encode(records)]
    assert as_lists(batch.completions) == [completions for _, completions in expected]
    assert as_lists(batch.prompts) == [prompts for prompts, _ in expected]
    assert [pairs.lengths(i) for i in range(32)] == [tuple(map(len, completions)) for _, completions in expected]


def test_candidates_that_answer_one_prompt_share_its_tensor(tmp_path):
    first, second = made(tmp_path)[0, 0]["prompts"]
    assert first is second


def test_rankings_become_batches_of_all_their_candidates_or_of_their_pairs(tmp_path):
    ranked = tuple(Candidate(text=text, rank=rank) for text, rank in ((" one", 1.0), (" two", 2.0), (" three", 3.0)))
    record = replace(text_record("Count:", candidates=ranked), prob=1.0)
    whole = made(tmp_path, [record])
    assert len(batch_of(whole).completions[0]) == 3
    split = TextPairs(View(whole.view.table, [lambda r: ranked_pairs(replace(r, prob=None))]), TEMPLATE, Limit())
    texts = [[TEMPLATE.tokenizer.decode(ids[:-1]) for ids in own] for own in batch_of(split).completions]
    assert texts == [[" one", " two"], [" one", " three"], [" two", " three"]]


def test_a_record_may_have_one_candidate_and_candidates_prompts_of_their_own(tmp_path):
    own = (Candidate(text="b"), Candidate(text="c", prompt="Another"))
    pairs = made(tmp_path, [text_record("One", candidates=own, prob=0.25)])
    (prompts,) = batch_of(pairs).prompts
    assert [TEMPLATE.tokenizer.decode(ids) for ids in prompts] == ["<|bos|>One", "<|bos|>Another"]
    assert batch_of(pairs).prob.tolist() == [0.25]
    alone = made(tmp_path / "alone", [text_record("One", "b")])
    assert (len(batch_of(alone).completions[0]), batch_of(alone).prob.tolist()) == (1, [1.0])


def test_records_left_out_leave_the_view_and_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        pairs = made(tmp_path, limit=Limit(20))
    assert [entry.id for entry in pairs.view.entries] == ["0", "2"]
    assert (len(pairs), batch_of(pairs).ids) == (2, ("0", "2"))
    assert "1 of 3 records are left out: the prompt alone fills max_length (20 tokens)" in caplog.text
    assert "1 of 2 records have equal candidates" in caplog.text


def test_keep_end_leaves_no_record_out_and_says_how_many_it_cut(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        pairs = made(tmp_path, limit=Limit(20, "keep_end"))
    (prompt, _), (completion, _) = (batch_of(pairs, [1]).prompts[0], batch_of(pairs, [1]).completions[0])
    assert TEMPLATE.tokenizer.decode(prompt).startswith("<|bos|>")
    assert TEMPLATE.tokenizer.decode([*prompt, *completion]).endswith("Another one: no<|im_end|>")
    assert "1 of 3 records are cut to max_length 20 (keep_end)" in caplog.text


def test_a_table_of_prompts_that_are_all_too_long_is_refused_with_the_shortest(tmp_path):
    shortest = min(len(TEMPLATE.prompt_ids(record)) for record in RECORDS)
    with pytest.raises(TableError, match=rf"of 3: .*max_length .*4 .*{shortest}"):
        made(tmp_path, limit=Limit(4))


def test_prompts_that_tokens_merge_across_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        made(tmp_path, [text_record("The answer to the que", "stion", "en"), text_record("What?", " a", " b", number=1)])
    assert "1 of 2 records: the tokenised prompt does not begin the tokenised whole" in caplog.text


def test_a_mismatched_candidate_is_in_turn_the_preferred_and_the_other_answer_to_another_prompt_before(tmp_path):
    texts = [("p", " a", " x"), ("q", " b", " y"), ("q", " c", " z"), ("r", " d", " w")]
    records = [text_record(*row, number=i) for i, row in enumerate(texts)]
    batch = batch_of(made(tmp_path, records, mismatched=True))
    decode = TEMPLATE.tokenizer.decode
    assert [[decode(ids[:-1]) for ids in own] for own in batch.completions] == [
        [" a", " x", " d"],
        [" b", " y", " x"],
        [" c", " z", " a"],
        [" d", " w", " z"],
    ]
    assert [decode(own[2]) for own in batch.prompts] == [f"<|bos|>{prompt}" for prompt in "pqqr"]


def test_mismatched_candidates_fit_their_new_prompt_and_come_from_records_that_were_kept(tmp_path):
    records = [
        text_record("a", "c", "b" * 9, number=0),
        text_record("d" * 30, "e", "f", number=1),
        text_record("g" * 9, "h", "i", number=2),
    ]
    pairs = made(tmp_path, records, limit=Limit(14), mismatched=True)
    assert [pairs.lengths(i) for i in range(2)] == [(2, 10, 2), (2, 2, 4)]


def test_mismatched_candidates_need_two_prompts(tmp_path):
    with pytest.raises(TableError, match="all 2 records have the same prompt"):
        made(tmp_path, [text_record("a", "b", "c"), text_record("a", "d", "e", number=1)], mismatched=True)


def test_a_batch_carries_the_views_weights_and_columns(tmp_path):
    scored = tuple(Candidate(text=text, scores={"taste": score}) for text, score in ((" a", 0.5), (" b", -1.0)))
    table = view_of(tmp_path, [text_record("One", candidates=scored), text_record("Two", candidates=scored, number=1)]).table
    view = View(table, [lambda record: (replace(record, weight=2.0),)], None, {"gains": "taste"})
    labels = batch_of(TextPairs(view, TEMPLATE, Limit())).labels
    assert labels.weight is not None
    assert labels.weight.tolist() == [2.0, 2.0]
    assert labels.columns["gains"].tolist() == [[0.5, -1.0], [0.5, -1.0]]


def test_the_longest_is_a_prompt_with_its_own_completion(tmp_path):
    own = (Candidate(text="b" * 9, prompt="p"), Candidate(text="c", prompt="d e f"))
    assert made(tmp_path, [text_record("", candidates=own), text_record("p", "", "", number=1)]).longest == 2 + 9 + 1


def test_reference_values_are_stacked_and_padded_with_zeros(tmp_path):
    pairs = made(tmp_path)
    pairs.reference = lambda position: np.full((2, max(pairs.lengths(position))), -1.0 - position, np.float32)
    batch = batch_of(pairs, [0, 2])
    lengths = [max(pairs.lengths(i)) for i in (0, 2)]
    assert batch.reference is not None
    assert batch.reference.shape == (2, 2, max(lengths))
    for own, position, length in zip(batch.reference, (0, 2), lengths, strict=True):
        assert own[:, :length].eq(-1.0 - position).all()
        assert own[:, length:].eq(0.0).all()


def test_the_fingerprint_follows_the_tokens_alone(tmp_path):
    first, again = made(tmp_path / "a"), made(tmp_path / "b", [replace(record, id=record.id + "x") for record in RECORDS])
    assert first.fingerprint == again.fingerprint
    others = [
        made(tmp_path / "c", RECORDS[::-1]),
        made(tmp_path / "d", limit=Limit(20, "keep_end")),
        made(tmp_path / "e", mismatched=True),
        made(tmp_path / "f", template=Template(tokenizer(bos=False))),
    ]
    assert len({pairs.fingerprint for pairs in (first, *others)}) == 5


def test_the_fingerprint_knows_which_prompt_a_candidate_answers(tmp_path):
    found = set()
    for last in ("p", "q"):
        own = tuple(Candidate(text="a", prompt=prompt) for prompt in ("p", "q", last))
        found.add(made(tmp_path / last, [text_record("", candidates=own, prob=1.0)]).fingerprint)
    assert len(found) == 2


def test_one_text_for_two_prompts_is_no_pair_of_equals(tmp_path, caplog):
    own = (Candidate(text="a", prompt="p"), Candidate(text="a", prompt="q"))
    with caplog.at_level(logging.INFO):
        made(tmp_path, [text_record("", candidates=own)])
    assert "equal candidates" not in caplog.text


def test_the_pairs_travel_to_another_process(tmp_path):
    pairs = made(tmp_path)
    copy = pickle.loads(pickle.dumps(pairs))
    assert as_lists(batch_of(copy).completions) == as_lists(batch_of(pairs).completions)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_each_record_once_an_epoch(tmp_path, workers):
    pairs = made(tmp_path, real_records()[:8])
    sampler = Sampler(len(pairs), 4, 1, 1, 0, seed=0)
    batches = list(loader(pairs, sampler, 0, 2, workers))
    assert sorted(name for batch in batches for name in batch.ids) == sorted(entry.id for entry in pairs.view.entries)


@pytest.mark.parametrize(("end", "warned"), [("<|im_end|>\n", False), ("\n", True)])
def test_a_chat_template_that_ends_no_answer_is_named(tmp_path, caplog, end, warned):
    words = tokenizer()
    words.chat_template = "{% for m in messages %}" + "[{{ m.role }}]{{ m.content }}" + end + "{% endfor %}"
    words.chat_template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    record = chat_record([("user", "What?")], "seven", "eight")
    with caplog.at_level(logging.WARNING):
        made(tmp_path, [record], template=Template(words))
    assert ("token that ends an answer" in caplog.text) == warned
