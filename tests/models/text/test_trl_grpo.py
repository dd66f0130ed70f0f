"""Side by side with TRL's GRPO on one tiny model: the clipped ratio of tokens has the same losses and gradients, padding included."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from diffalign.core.types import Labels
from diffalign.models.text.forward import read
from diffalign.models.text.likelihood import SequenceLikelihood
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.template import Template
from diffalign.models.text.truncation import Limit
from diffalign.objectives import OBJECTIVES
from tests.models.text.models import folder, llama, tokenizer
from tests.models.text.tables import real_records, view_of
from tests.models.text.test_trl import agree, flat_gradient, near

pytest.importorskip("trl", reason="TRL is in the dev extra")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own
RECORDS, LONGEST = 4, 48


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    path = tmp_path_factory.mktemp("trl")
    options = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            near(type(llama()).from_pretrained(str(folder(path / "model", llama(), tokenizer())))),
            lambda completions, **_: [0.0] * len(completions),
            GRPOConfig(str(path / "out"), per_device_train_batch_size=2, num_generations=2, **options),
            train_dataset=Dataset.from_list([{"prompt": "a"}]),
            processing_class=tokenizer(),
        )
    trainer.model.double().eval()
    return trainer


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Return a batch of completions with the log-probabilities of the policy that wrote them, their scores, and the policy."""
    view = view_of(tmp_path_factory.mktemp("records"), real_records())
    pairs = TextPairs(view, Template(tokenizer()), Limit(LONGEST, "keep_end"))
    batch = pairs.to_batch([pairs[i, 0] for i in range(RECORDS)])
    likelihood = SequenceLikelihood(read, needs=frozenset(OBJECTIVES["clipped_ratio"].facts.tokens))
    policy, first = near(llama()).double().eval(), llama().double().eval()
    with torch.no_grad():
        reference = likelihood.score(first, batch)
        moved = 0.3 * torch.randn(reference.tokens.shape, generator=torch.Generator().manual_seed(3))
        old = likelihood.score(policy, batch).tokens + moved * (reference.tokens != 0.0)
    advantage = torch.randn(RECORDS, 2, generator=torch.Generator().manual_seed(4))
    batch = replace(batch, old=old, labels=Labels(columns={"advantage": advantage}))
    return batch, likelihood.scores(likelihood.score(policy, batch), reference, batch), policy


def inputs_of(batch: Any, scores: Any) -> dict[str, torch.Tensor]:
    """Return the completions as TRL pads them: prompts on the left, completions on the right."""
    prompts = [prompt.flip(0) for of_record in batch.prompts for prompt in of_record]
    completions = [ids for of_record in batch.completions for ids in of_record]
    masks = ([torch.ones_like(ids) for ids in rows] for rows in (prompts, completions))
    prompt_mask, completion_mask = (pad_sequence(rows, batch_first=True) for rows in masks)
    return {
        "prompt_ids": pad_sequence(prompts, batch_first=True).flip(1),
        "prompt_mask": prompt_mask.flip(1),
        "completion_ids": pad_sequence(completions, batch_first=True),
        "completion_mask": completion_mask,
        "advantages": batch.labels.columns["advantage"].flatten(),
        "old_per_token_logps": scores.tokens.old.flatten(0, 1),
        "ref_per_token_logps": scores.tokens.reference.flatten(0, 1),
        "num_items_in_batch": completion_mask.sum(),
    }


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {}),
    "grpo with a KL": ({"loss_type": "grpo", "beta": 0.04}, {"kl": 0.04}),
    "clipped higher": ({"loss_type": "grpo", "epsilon_high": 0.28}, {"high": 0.28}),
    "bnpo": ({"loss_type": "bnpo"}, {"normaliser": "batch"}),
    "dapo": ({"loss_type": "dapo"}, {"normaliser": "batch"}),
    "dr_grpo": ({"loss_type": "dr_grpo", "max_completion_length": 60}, {"normaliser": "fixed", "length": 60}),
    "gspo": ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"level": "sequence"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_clipped_ratio_of_tokens_is_that_of_trl(trainer: Any, scored: tuple[Any, Any, Any], name: str):
    settings, constants = CASES[name]
    batch, scores, policy = scored
    usual = {"beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"}
    trainer.args.use_bias_correction_kl = False  # which multiplies the KL with the ratio
    for key, value in (usual | settings).items():
        setattr(trainer, key, value)
    theirs = trainer._compute_loss(trainer.model, inputs_of(batch, scores))
    own = OBJECTIVES["clipped_ratio"](scores, low=0.2, **constants).mean()
    clipped = ((scores.tokens.policy - scores.tokens.old).abs() > 0.2) & scores.tokens.mask
    assert 0.1 < clipped.sum() / scores.tokens.mask.sum() < 0.9
    agree((own.detach(), flat_gradient(own, policy, keep=True)), (theirs.detach(), flat_gradient(theirs, trainer.model)))
