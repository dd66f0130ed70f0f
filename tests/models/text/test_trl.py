"""Side by side with TRL on one tiny model and 32 real pairs: the same losses and the same gradients, padding included."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffalign.core.types import Scores
from diffalign.models.text.forward import read
from diffalign.models.text.likelihood import SequenceLikelihood, Switches, ld_dpo, mean, plain
from diffalign.models.text.pairs import TextPairs
from diffalign.models.text.template import Template
from diffalign.models.text.truncation import Limit
from diffalign.objectives import OBJECTIVES
from tests.models.text.models import folder, llama, tokenizer
from tests.models.text.tables import real_records, view_of

pytest.importorskip("trl", reason="TRL is in the dev extra")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own
LONGEST = 96
QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None}


@dataclass(frozen=True, eq=False)
class Bench:
    """The pairs as a batch of ours, the policy, the reference, and TRL's trainer with copies of both."""

    batch: Any
    policy: Any
    reference: Any
    trainer: Any


def near(model: Any) -> Any:
    """Return a model whose weights are a little off those of `model`, as a policy is after some steps."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.003 * torch.randn(parameter.shape, generator=draw))
    return model.train()


def made(path: Any, *, mismatched: bool = False) -> Any:
    pairs = TextPairs(view_of(path, real_records()), Template(tokenizer()), Limit(LONGEST, "keep_end"), mismatched=mismatched)
    return pairs.to_batch([pairs[i, 0] for i in range(len(pairs))])


def rows_of(batch: Any) -> list[dict[str, list[int]]]:
    """Return the batch in TRL's columns."""
    return [
        {"prompt_ids": prompts[0].tolist(), "chosen_ids": own[0].tolist(), "rejected_ids": own[1].tolist()}
        for prompts, own in zip(batch.prompts, batch.completions, strict=True)
    ]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    path = tmp_path_factory.mktemp("trl")
    name, words = str(folder(path / "model", llama(), tokenizer())), tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy, reference = near(type(llama()).from_pretrained(name)), type(llama()).from_pretrained(name)
        trainer = DPOTrainer(
            policy,
            reference,
            DPOConfig(str(path / "out"), **QUIET),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
            processing_class=words,
        )
    batch = made(path)
    assert len(batch.prob) == 32
    return Bench(batch, near(llama()), llama(), trainer)


def told(trainer: Any, settings: dict[str, Any]) -> None:
    """Set the trainer's constants as its constructor would."""
    defaults = {"beta": 0.1, "label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False}
    for name, value in ({"loss_types": ["sigmoid"], "f_alpha_divergence_coef": 0.5} | defaults | settings).items():
        setattr(trainer, name, value)


def theirs(bench: Bench, settings: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return TRL's loss and gradient."""
    told(bench.trainer, settings)
    fused = bench.trainer.model.forward
    if settings.get("use_weighting"):
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(bench.trainer.model, outputs=("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs"))
    loss = bench.trainer.compute_loss(bench.trainer.model, bench.trainer.data_collator(rows_of(bench.batch)))
    bench.trainer.model.forward = fused
    return loss.detach(), flat_gradient(loss, bench.trainer.model)


def flat_gradient(loss: torch.Tensor, model: Any, *, keep: bool = False) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=keep)])


def agree(own: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Compare losses and every entry of the gradient to 1e-5, of the gradient's norm where that is above 1: both sum in float32."""
    torch.testing.assert_close(own[0], other[0], rtol=1e-5, atol=1e-5)
    assert (own[1] - other[1]).abs().max() <= 1e-5 * other[1].norm().clamp(min=1.0)


AGGREGATIONS = {"sum": plain(), "mean": mean(), "ld_dpo": ld_dpo(alpha=0.5)}


@functools.lru_cache(maxsize=2)
def scored(bench: Bench, aggregation: str, needs: frozenset[str]) -> Scores:
    likelihood = SequenceLikelihood(read, AGGREGATIONS[aggregation], Switches(logits_chunk=700), needs)
    with torch.no_grad():
        reference = likelihood.score(bench.reference, bench.batch)
    return likelihood.scores(likelihood.score(bench.policy, bench.batch), reference, bench.batch)


def same_as_trl(bench: Bench, settings: dict[str, Any], name: str, constants: dict[str, Any], aggregation: str = "sum") -> None:
    scores = scored(bench, aggregation, frozenset(OBJECTIVES[name].facts.tokens))
    loss = OBJECTIVES[name](scores, **constants).mean()
    agree((loss.detach(), flat_gradient(loss, bench.policy, keep=True)), theirs(bench, settings))


BETA = {"beta": 0.1}
SMOOTH = {"label_smoothing": 0.1}
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "sigmoid": ({}, "dpo", BETA, "sum"),
    "hinge": ({}, "hinge", BETA, "sum"),
    "ipo": ({}, "ipo", {"tau": 0.1}, "mean"),
    "exo_pair": (SMOOTH, "exo", BETA | SMOOTH, "sum"),
    "nca_pair": ({}, "nca", BETA, "sum"),
    "robust": (SMOOTH, "robust", BETA | SMOOTH, "sum"),
    "bco_pair": ({}, "bco", BETA, "sum"),
    "sppo_hard": ({}, "sppo", BETA, "sum"),
    "aot": (SMOOTH, "aot", BETA | SMOOTH, "sum"),
    "aot_unpaired": (SMOOTH, "aot_unpaired", BETA | SMOOTH, "sum"),
    "apo_zero": ({}, "apo_zero", BETA, "sum"),
    "apo_down": ({}, "apo_down", BETA, "sum"),
    "discopop": ({}, "discopop", BETA, "sum"),
    "sigmoid_norm": ({}, "dpo", BETA, "mean"),
}


@pytest.mark.parametrize("loss_type", CASES)
def test_a_loss_of_the_dpo_trainer_has_the_same_value_and_gradient(bench: Bench, loss_type: str):
    settings, name, constants, aggregation = CASES[loss_type]
    same_as_trl(bench, {"loss_types": [loss_type], **settings}, name, constants, aggregation)


@pytest.mark.parametrize(("divergence", "own"), [("forward_kl", "forward_kl"), ("js_divergence", "js"), ("alpha_divergence", "alpha")])
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"])
def test_a_divergence_of_the_dpo_trainer_has_the_same_value_and_gradient(bench: Bench, loss_type: str, divergence: str, own: str):
    # All of TRL 1.16 that take one. A mean over tokens keeps the constants of g, so `ipo` and `sigmoid_norm` tell whether g is centred.
    settings, name, constants, aggregation = CASES[loss_type]
    settings = {"loss_types": [loss_type], "f_divergence_type": divergence, "f_alpha_divergence_coef": 0.7, **settings}
    same_as_trl(bench, settings, name, constants | {"divergence": own, "coefficient": 0.7}, aggregation)


@pytest.mark.parametrize(("loss_type", "name"), [("nca_pair", "nca"), ("bco_pair", "bco")])
def test_losses_that_place_each_reward_take_a_divergence_here_and_none_in_trl(bench: Bench, loss_type: str, name: str):
    scores = scored(bench, "sum", frozenset())
    with_one = OBJECTIVES[name](scores, divergence="js", **BETA).mean().detach()
    assert (with_one - theirs(bench, {"loss_types": [loss_type], "f_divergence_type": "js_divergence"})[0]).abs() > 1e-4


def test_length_desensitised_sums_are_those_of_ld_alpha(bench: Bench):
    same_as_trl(bench, {"ld_alpha": 0.5}, "dpo", BETA, "ld_dpo")


def test_wpo_without_its_clamp_is_use_weighting(bench: Bench):
    same_as_trl(bench, {"use_weighting": True}, "wpo", BETA | {"clamp": False})


def test_denoise_is_sft_but_for_whose_mean_it_is(bench: Bench):
    # TRL's mean is over the batch's tokens, ours over the record's: they agree once each record weighs as much as it is long.
    scores = scored(bench, "mean", frozenset())
    assert scores.lengths is not None
    lengths = scores.lengths[:, 0].float()
    loss = OBJECTIVES["denoise"](replace(scores, weight=lengths / lengths.mean())).mean()
    own = loss.detach(), flat_gradient(loss, bench.policy, keep=True)
    agree(own, theirs(bench, {"loss_types": ["sft"]}))


def padded(batch: Any, k: int) -> dict[str, torch.Tensor]:
    """Return candidate `k` of every record as ids, mask and labels, padded on the right, as TRL's older collators do."""
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    pairs = [(prompts[k], own[k]) for prompts, own in zip(batch.prompts, batch.completions, strict=True)]
    ids = [torch.cat(pair) for pair in pairs]
    labels = [torch.cat([torch.full_like(prompt, -100), own]) for prompt, own in pairs]
    mask = pad([torch.ones_like(x) for x in ids])
    return {"input_ids": pad(ids), "attention_mask": mask, "labels": pad(labels, padding_value=-100)}


@pytest.mark.parametrize(
    ("loss_type", "name", "constants", "aggregation"),
    [
        ("sigmoid", "cpo", {"cpo_alpha": 0.0, "label_smoothing": 0.1}, "sum"),
        ("hinge", "cpo", {"cpo_alpha": 0.0, "loss_type": "hinge"}, "sum"),
        ("ipo", "cpo", {"cpo_alpha": 0.0, "loss_type": "ipo"}, "mean"),
        ("simpo", "simpo", {"gamma": 0.5}, "mean"),
    ],
)
def test_a_loss_of_the_cpo_trainer_has_the_same_value_and_gradient(
    bench: Bench, loss_type: str, name: str, constants: dict[str, Any], aggregation: str
):
    from trl.experimental.cpo import CPOTrainer

    sides = {f"{side}_{key}": value for k, side in enumerate(("chosen", "rejected")) for key, value in padded(bench.batch, k).items()}
    own = SimpleNamespace(
        is_encoder_decoder=False,
        pad_token_id=0,
        aux_loss_enabled=False,
        cpo_alpha=0.0,
        alpha=0.0,
        beta=0.1,
        loss_type=loss_type,
        label_smoothing=constants.get("label_smoothing", 0.0),
        simpo_gamma=0.5,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        concatenated_inputs=CPOTrainer.concatenated_inputs,
        get_batch_logps=CPOTrainer.get_batch_logps,
    )
    policy = near(llama())
    chosen, rejected = CPOTrainer.concatenated_forward(own, policy, sides)[:2]  # pyright: ignore[reportArgumentType]
    loss = CPOTrainer.cpo_loss(own, chosen, rejected)[0].mean()  # pyright: ignore[reportArgumentType]
    found = OBJECTIVES[name](scored(bench, aggregation, frozenset()), beta=0.1, **constants).mean()
    agree((found.detach(), flat_gradient(found, bench.policy, keep=True)), (loss.detach(), flat_gradient(loss, policy)))


def test_a_loss_of_the_kto_trainer_has_the_same_value_and_gradient(bench: Bench, tmp_path: Any):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    batch, policy, reference = made(tmp_path, mismatched=True), near(llama()), llama()
    rows = [{"prompt": "a", "completion": " b", "label": True}, {"prompt": "c", "completion": " d", "label": False}]
    options: dict[str, Any] = {**QUIET, "per_device_train_batch_size": 2}
    config = KTOConfig(str(tmp_path / "out"), **options)
    trainer = KTOTrainer(policy, reference, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    found = [
        {"prompt_ids": prompts[0].tolist(), "completion_ids": own[k].tolist(), "KL_completion_ids": own[-1].tolist(), "label": k == 0}
        for prompts, own in zip(batch.prompts, batch.completions, strict=True)
        for k in range(2)
    ]
    loss = trainer.compute_loss(policy, trainer.data_collator(found))
    likelihood = SequenceLikelihood(read)
    with torch.no_grad():
        other = likelihood.score(bench.reference, batch)
    mine = OBJECTIVES["kto"](likelihood.scores(likelihood.score(bench.policy, batch), other, batch), beta=0.1).mean()
    agree((mine.detach(), flat_gradient(mine, bench.policy)), (loss.detach(), flat_gradient(loss, policy)))


def test_the_table_names_what_is_compared_with_trl_here():
    compared = {name for _, name, *_ in CASES.values()} | {"clipped_ratio", "cpo", "denoise", "kto", "simpo", "wpo"}
    assert compared == {name for name in OBJECTIVES if "TRL" in OBJECTIVES[name].source.checks}
