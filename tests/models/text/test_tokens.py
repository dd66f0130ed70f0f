"""Token ids of many records are made once, kept on disk, and the same as those that are made in memory."""

from __future__ import annotations

import hashlib
import itertools
import pickle

import numpy as np
import pytest

from diffalign.data.view import View
from diffalign.models.text import tokens as module
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.template import Template
from diffalign.models.text.tokens import tokens
from diffalign.models.text.truncation import Limit
from tests.models.text.models import tokenizer
from tests.models.text.tables import real_records, view_of

TEMPLATE = Template(tokenizer())
COUNT = 12


@pytest.fixture
def view(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 5)
    return view_of(tmp_path / "table", real_records()[:COUNT])


def same(one, other) -> bool:
    texts = zip((*one.prompts, *one.completions), (*other.prompts, *other.completions), strict=True)
    return (one.answers, one.lost) == (other.answers, other.lost) and all(np.array_equal(a, b) for a, b in texts)


def test_tokens_on_disk_are_those_of_the_template(view, tmp_path):
    expected, made = TEMPLATE.encode(list(view)), tokens(view, TEMPLATE, tmp_path / "cache")
    assert len(made) == COUNT
    assert all(same(one, other) for one, other in zip(made, expected, strict=True))
    assert all(same(one, other) for one, other in zip(pickle.loads(pickle.dumps(made)), expected, strict=True))
    assert made.longest_prompts.tolist() == [max(map(len, record.prompts)) for record in expected]


def test_tokens_are_made_once_and_only_what_a_kill_left_missing_is_made_again(view, tmp_path, monkeypatch):
    first = tokens(view, TEMPLATE, tmp_path / "cache")
    records = sorted((tmp_path / "cache").glob("tokens-*/*.records.npy"))
    assert len(records) == 3
    records[1].unlink()
    encoded = []
    monkeypatch.setattr(Template, "encode", lambda self, own, real=Template.encode: encoded.append(len(own)) or real(self, own))
    again = tokens(view, TEMPLATE, tmp_path / "cache")
    assert encoded == [5]
    assert all(same(one, other) for one, other in zip(again, first, strict=True))


def test_another_view_or_tokenizer_has_tokens_of_its_own(view, tmp_path):
    for own, template in ((view, TEMPLATE), (View(view.table, [], COUNT - 1), TEMPLATE), (view, Template(tokenizer(bos=False)))):
        tokens(own, template, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("tokens-*"))) == 3


@pytest.mark.parametrize(("mode", "mismatched"), list(itertools.product(("keep_start", "keep_end"), (False, True))))
def test_lengths_and_fingerprint_are_those_of_the_texts_that_are_trained_on(view, tmp_path, mode, mismatched):
    length = int(np.median(tokens(view, TEMPLATE).longest_prompts)) + 3
    pairs = TextPairs(view, TEMPLATE, Limit(length, mode), mismatched=mismatched, root=tmp_path / "cache")
    rows = [pairs[i, 0] for i in range(len(pairs))]
    assert [pairs.lengths(i) for i in range(len(pairs))] == [tuple(map(len, row["completions"])) for row in rows]
    both = [(p, c) for row in rows for p, c in zip(row["prompts"], row["completions"], strict=True)]
    assert pairs.longest == max(len(p) + len(c) for p, c in both) <= length
    # By hand: the distinct prompts of each record, then all completions, each with where it begins; how many of them a record has, and
    # which prompt each answers.
    prompts, prompt_of = [], []
    for row in rows:
        own = list({id(ids): ids for ids in row["prompts"]}.values())
        prompt_of += [len(prompts) + next(i for i, ids in enumerate(own) if ids is prompt) for prompt in row["prompts"]]
        prompts += own
    digest = hashlib.sha256()
    for texts in (prompts, [c for _, c in both]):
        digest.update(np.cumsum([0, *map(len, texts)], dtype=np.int64).tobytes())
        digest.update(np.concatenate([ids.numpy() for ids in texts]).astype(np.int32).tobytes())
    digest.update(np.cumsum([0, *(len(row["completions"]) for row in rows)], dtype=np.int64).tobytes())
    digest.update(np.array(prompt_of, np.int64).tobytes())
    assert pairs.fingerprint == digest.hexdigest()
