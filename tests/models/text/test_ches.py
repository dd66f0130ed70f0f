"""CHES of pairs under a real model: which positions it sums, and how it reaches the filter."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from diffalign.data.table import write_table
from diffalign.data.transforms import lowest, orient
from diffalign.data.transforms.filters import threshold
from diffalign.data.view import View
from diffalign.models.text import forward as lm_forward
from diffalign.models.text.ches import scored, similarity
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.template import Template
from diffalign.models.text.truncation import Limit
from tests.models.text.models import llama, tokenizer
from tests.models.text.tables import text_record, view_of

RECORDS = [
    text_record("Write a word:", " red", " blue and green", number=0),
    text_record("A photo of a red circle above a blue square. Another one:", " no", " yes", number=1),
    text_record("What?", " seven", " seven", number=2),
]


@pytest.fixture
def pairs(tmp_path):
    return TextPairs(view_of(tmp_path / "table", RECORDS), Template(tokenizer()), Limit())


def test_the_states_that_predict_the_answer_are_summed_and_no_padding(pairs):
    model = llama()
    batch = pairs.to_batch([pairs[i, 0] for i in range(3)])
    plain, normalised = similarity(lm_forward.read, model, batch)
    for record in range(3):
        parts = []
        for prompt, answer in zip(batch.prompts[record], batch.completions[record], strict=True):
            with torch.no_grad():
                states = model(torch.cat([prompt, answer])[None], output_hidden_states=True).hidden_states[-1][0]
            parts.append(states[len(prompt) - 1 : -1])
        (a, b), (n, m) = (part.sum(0) for part in parts), map(len, parts)
        assert plain[record].item() == pytest.approx((a @ b - a @ a).item(), abs=1e-3)
        assert normalised[record].item() == pytest.approx((a @ b / (n * m) - a @ a / n**2).item(), abs=1e-4)
    assert plain[2].item() == 0.0  # identical answers


def test_the_scores_reach_the_filter_through_a_table(pairs, tmp_path):
    table = write_table(tmp_path / "scored", scored(pairs, lm_forward.read, llama(), torch.device("cpu"), batch_size=2))
    found = {record.id: record.candidates[0].scores["ln_ches"] for record in table}
    assert [record.candidates[1].scores for record in table] == [{}] * 3
    most = threshold(table, "ln_ches", 0.3)
    kept = View(table, [orient, partial(lowest, score="ln_ches", share=0.3, most=most)])
    assert [entry.id for entry in kept.entries] == [min(found, key=lambda name: found[name])]
    assert kept[0].candidates[0].text == next(record for record in RECORDS if record.id == kept[0].id).candidates[0].text
