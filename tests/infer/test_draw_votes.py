"""Pictures for a vote store: models at the same seeds, adapters at several weights, and an end where nothing can be compared."""

from __future__ import annotations

import pytest

from diffalign.core.errors import ConfigError
from diffalign.data.pictures import decode_image
from diffalign.data.store import VoteStore
from diffalign.infer.draw_votes import draw_votes
from diffalign.infer.options import DrawVotesConfig
from tests.infer.runs import write_run
from tests.micro_models import write_micro

PROMPTS = ["a red star", "a blue ring"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def run(base):
    return write_run(base.parent / "run", base)


def drawn(folder, models, ahead=1, prompts=PROMPTS, **options) -> VoteStore:
    config = {"dataset_name": str(folder / "votes.db"), "pretrained_model_name_or_path": list(map(str, models)), "ahead": ahead}
    draw_votes(DrawVotesConfig(**config, num_inference_steps=1, **options), prompts)
    return VoteStore(folder / "votes.db")


def pairs(store: VoteStore, user: str) -> list:
    return [question.pictures for question in store.questions(user, 100)]


def test_models_are_paired_by_seed_and_a_new_one_catches_up(tmp_path, base, run):
    fair = {"images_per_prompt": 1, "same_seed": True}
    drawn(tmp_path, [base, run], ahead=3, **fair).close()  # two turns of two prompts
    other = write_run(tmp_path / "other", base, targets=["to_q"])
    with drawn(tmp_path, [base, other], ahead=5, **fair) as store:
        shown = pairs(store, "ada")
        assert len(shown) == 4 + 2 + 2  # base and run; the other one with each of them at the first seed
        assert all(left.seed == right.seed and left.model != right.model for left, right in shown)
        assert [store.count(prompt, "base") for prompt in PROMPTS] == [2, 2]
        assert [store.count(prompt, "other") for prompt in PROMPTS] == [1, 1]


def test_an_adapter_is_drawn_at_each_weight_and_at_zero_it_is_the_base(tmp_path, base, run):
    with drawn(tmp_path, [run, base], images_per_prompt=1, same_seed=True, lora_scales=[0.0, 0.5, 1.0]) as store:
        assert store.models() == ["run at 0", "run at 0.5", "run", "base"]
        pictures = {
            model: decode_image(next(iter(store.pictures(PROMPTS[0], model).values())).read_bytes(), model) for model in store.models()
        }
        assert pictures["run at 0"].tobytes() == pictures["base"].tobytes()
        assert len({picture.tobytes() for picture in pictures.values()}) == 3
    with drawn(tmp_path / "whole", [base, run], images_per_prompt=1, same_seed=True) as store:
        whole = decode_image(next(iter(store.pictures(PROMPTS[0], "run").values())).read_bytes(), "run")
        assert whole.tobytes() == pictures["run"].tobytes()


def test_models_that_draw_the_same_pictures_are_refused_instead_of_drawn_for_ever(tmp_path, base):
    other = write_micro("sd", tmp_path / "other")
    with pytest.raises(ConfigError, match="other"):
        drawn(tmp_path, [base, other], images_per_prompt=1, same_seed=True)


def test_what_has_no_lora_has_no_weights_to_draw_it_at(tmp_path, base):
    full = write_run(tmp_path / "full", base, train_method="full")
    with pytest.raises(ConfigError, match="lora_scales"):
        drawn(tmp_path, [full], lora_scales=[0.0, 1.0])
