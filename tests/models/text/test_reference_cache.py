"""What the reference says is computed once, kept for each token, found again after a kill, and refused when it is stale."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch

from diffalign.core.errors import ConfigError, TableError
from diffalign.models.reference import Cached, Frozen
from diffalign.models.text.forward import read
from diffalign.models.text.likelihood import SequenceLikelihood, joint, mean
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.reference import precomputed
from diffalign.models.text.template import Template
from diffalign.models.text.truncation import Limit
from tests.models.text.models import llama, tokenizer
from tests.models.text.tables import real_records, view_of

CPU = torch.device("cpu")


class Counted:
    """A frozen reference that counts the records it scores, and is killed after so many batches."""

    def __init__(self, model, batches: int = 10**9) -> None:
        self.inner, self.left, self.records = Frozen(model), batches, 0

    def score(self, likelihood, query):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.records += len(query.prob)
        return self.inner.score(likelihood, query)

    def driving(self):
        return self.inner.driving()


def made(folder) -> TextPairs:
    return TextPairs(view_of(folder, real_records()[:6]), Template(tokenizer()), Limit(256))


def stored(pairs, folder, reference=None, likelihood=None, model="a"):
    likelihood = likelihood or SequenceLikelihood(read)
    return precomputed(pairs, likelihood, reference or Counted(llama()), folder / "cache", {"model": model}, CPU, 2)


@pytest.mark.parametrize("aggregation", [mean(), joint()])
def test_a_cached_reference_gives_the_scores_of_a_live_one(tmp_path, aggregation):
    pairs, likelihood = made(tmp_path), SequenceLikelihood(read, aggregation)
    live = Frozen(llama())
    pairs.reference = pickle.loads(pickle.dumps(stored(pairs, tmp_path, live, likelihood)))  # as a loader's worker gets it
    batch = pairs.to_batch([pairs[i, 0] for i in (4, 1)])
    own = likelihood.score(llama(seed=1), batch)
    expected = likelihood.scores(own, live.score(likelihood, batch), batch)
    found = likelihood.scores(own, Cached().score(likelihood, batch), batch)
    torch.testing.assert_close(found.reference, expected.reference, rtol=1e-5, atol=1e-4)
    assert (found.lengths == expected.lengths).all()


def test_a_killed_run_goes_on_where_it_was_and_a_finished_one_runs_no_network(tmp_path):
    pairs, killed = made(tmp_path), Counted(llama(), batches=2)
    with pytest.raises(KeyboardInterrupt):
        stored(pairs, tmp_path, killed)
    again, whole = Counted(llama()), Counted(llama())
    found = stored(pairs, tmp_path, again)
    assert (killed.records, again.records) == (4, 2)
    expected = stored(pairs, tmp_path / "other", whole)
    assert all((found(i) == expected(i)).all() for i in range(len(pairs)))
    finished = Counted(llama())
    stored(pairs, tmp_path, finished)
    assert finished.records == 0


def test_another_model_has_a_cache_of_its_own_and_a_stale_one_is_refused(tmp_path):
    pairs = made(tmp_path)
    stored(pairs, tmp_path)
    other = Counted(llama(seed=1))
    stored(pairs, tmp_path, other, model="b")
    assert other.records == len(pairs)
    for manifest in (tmp_path / "cache").glob("reference-*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "of something else"}))
    with pytest.raises(TableError, match="stale"):
        stored(pairs, tmp_path)


def test_objectives_of_whole_distributions_keep_the_reference_live(tmp_path):
    likelihood = replace(SequenceLikelihood(read), needs=frozenset({"kl"}))
    assert likelihood.distributions
    with pytest.raises(ConfigError, match="precompute_ref_log_probs"):
        stored(made(tmp_path), tmp_path, likelihood=likelihood)


def test_a_cached_reference_has_no_network_to_drive_with():
    with pytest.raises(ConfigError, match="no reference network"):
        Cached().driving()
