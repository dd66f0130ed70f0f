"""The run behind the page Yours: what it draws, what it asks next, and what it says of a taste."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from diffalign.app import studio as module
from diffalign.app.pages.yours import Look, Sitting
from diffalign.app.studio import EACH, Studio, shipped
from diffalign.app.voters import Accounts
from diffalign.core.errors import ConfigError
from diffalign.data.pictures import encode_image
from diffalign.data.questions import OpenPair
from diffalign.data.store import VoteStore
from diffalign.data.world.scenes import Scene, render
from tests.infer.runs import write_run
from tests.infer.user_runs import write_user_run
from tests.micro_models import write_micro

PROMPTS = ("a star", "a ring")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return write_user_run(tmp_path_factory.mktemp("runs") / "ppd", base)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 2)


@pytest.fixture
def store(tmp_path):
    with VoteStore(tmp_path / "choices.db") as store:
        yield store


def fill(store: VoteStore, rng: np.random.Generator) -> None:
    """Add all pictures to choose from, so that nothing is drawn."""
    for prompt in PROMPTS:
        noise = rng.integers(0, 255, (EACH, 32, 32, 3), np.uint8)
        store.add_pictures(prompt, [encode_image(Image.fromarray(one)) for one in noise], seeds=range(EACH))


def test_pictures_to_choose_from_are_drawn_once_and_go_on_after_a_break(run, store):
    with closing(Studio(run, store, PROMPTS).prepare()) as broken_off:
        assert [next(broken_off), next(broken_off)] == [(0, 2 * EACH), (EACH, 2 * EACH)]
    drawn = store.pictures(PROMPTS[0], "")
    assert len(list(Studio(run, store, PROMPTS).prepare())) == 2
    assert store.pictures(PROMPTS[0], "") == drawn
    assert sorted(store.pictures(PROMPTS[1], "")) == list(range(EACH))


def test_the_first_pair_is_the_one_whose_pictures_differ_most_and_an_answered_one_is_not_asked_for_again(run, store):
    fill(store, np.random.default_rng(0))
    studio, pairs = Studio(run, store, PROMPTS), []

    def ask(candidates):
        assert studio.next_pair("ada", candidates) == 0  # before the run is loaded
        list(studio.prepare())
        pairs.extend(candidates)
        return studio.next_pair("ada", candidates)

    (question,) = store.questions("ada", choose=ask)
    numbers = [studio.personal.numbers([Image.open(picture.file) for picture in (pair.first, pair.second)]) for pair in pairs]
    apart = [float((first - second).norm()) for first, second in numbers]
    place = apart.index(max(apart))
    assert {picture.id for picture in question.pictures} == {pairs[place].first.id, pairs[place].second.id}
    store.vote(question.id, "ada", "left")
    assert studio.next_pair("ada", pairs) != place


def test_a_taste_is_what_the_run_makes_of_the_choices_that_prefer_a_picture(run, store):
    fill(store, np.random.default_rng(1))
    studio = Studio(run, store, PROMPTS)
    assert studio.taste("ada") is None
    choices = []
    for answer in ("left", "right", "tie", "both_bad", "skip"):
        (question,) = store.questions("ada")
        store.vote(question.id, "ada", answer)
        left, right = (picture.file for picture in question.pictures)
        choices += {"left": [(question.prompt, left, right)], "right": [(question.prompt, right, left)]}.get(answer, [])
    tokens, expected = studio.taste("ada"), studio.personal.for_user(choices).tokens
    assert tokens is not None
    assert expected is not None
    assert torch.equal(tokens, expected)
    assert studio.taste("bob") is None
    studio.forget("ada")
    assert studio.taste("ada") is None


def test_nobodys_pictures_are_the_base_models_and_are_drawn_once(run, store):
    studio = Studio(run, store, PROMPTS)
    images = studio.nobodys(PROMPTS)
    assert studio.nobodys(PROMPTS) is images
    taste = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    for strength, same in ((0.0, True), (1.0, False)):
        person = Look(mine=taste, strength=strength).person(studio)
        assert person is not None
        drawn = studio.pictures(person, PROMPTS)
        assert all((first.tobytes() == second.tobytes()) == same for first, second in zip(drawn, images, strict=True)), strength


def test_a_look_goes_from_one_taste_to_another(run, store):
    studio = Studio(run, store, PROMPTS)
    mine, other = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    person = Look(mine=mine, other=other, to_other=0.25, strength=0.5).person(studio)
    assert person is not None
    assert person.tokens is not None
    assert torch.allclose(person.tokens, 0.75 * mine + 0.25 * other)
    assert person.strength == 0.5
    assert Look(other=other).person(studio) is None


def test_a_saved_taste_is_loaded_and_a_wrong_file_is_refused_without_a_folder_of_the_server(run, store, tmp_path):
    studio = Studio(run, store, PROMPTS)
    sitting, taste = Sitting(studio, Accounts()), torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    _, _, save, *_ = sitting.drawn(Look(mine=taste), "a star", 1.0, 0.0)
    _, _, _, look, *_ = sitting.loaded(save["value"], Look(), "a star", 1.0, 0.0, second=False)
    assert torch.equal(look.mine, taste)
    _, _, _, look, to_other, _ = sitting.loaded(save["value"], Look(mine=-taste), "a star", 1.0, 0.0, second=True)
    assert torch.equal(look.other, taste)
    assert to_other == 0.5
    wrong = tmp_path / "notes.safetensors"
    wrong.write_bytes(b"not tensors")
    message, *rest = sitting.loaded(str(wrong), Look(mine=taste), "a star", 1.0, 0.0, second=False)
    assert "notes.safetensors" in message
    assert str(tmp_path) not in message
    assert not any(isinstance(news, Look) for news in rest)


def test_in_the_embedded_world_a_taste_is_put_into_words(base, store, tmp_path):
    """A run whose encoder sees the latents themselves tells a bright background from a dark one."""
    world = base.parent / "tiny-sd"
    if not world.exists():
        world.symlink_to(base)
    rng = np.random.default_rng(0)
    for prompt in PROMPTS:
        scenes = [Scene(prompt.split()[1], "red", "large", "center", ground) for ground in ("white", "black") * (EACH // 2)]
        store.add_pictures(prompt, [encode_image(render(scene, rng)) for scene in scenes], seeds=range(EACH))
    studio = Studio(write_user_run(tmp_path / "run", world), store, PROMPTS)
    list(studio.prepare())
    assert studio.words("ada") == ""
    (question,) = store.questions("ada", choose=lambda pairs: next(n for n, pair in enumerate(pairs) if brighter(pair)))
    store.vote(question.id, "ada", "left" if brightness(question.pictures[0]) > brightness(question.pictures[1]) else "right")
    assert "a white background" in studio.words("ada").split(". ")[0]
    assert "a black background" in studio.words("ada").split(". ")[1]
    bright, dark = (Image.new("RGB", (64, 64), shade) for shade in ("white", "black"))
    assert "a white background" in studio.words_of([bright, bright], [dark, dark], PROMPTS)


def brightness(picture) -> float:
    return float(np.asarray(Image.open(picture.file)).mean())


def brighter(pair: OpenPair) -> bool:
    return abs(brightness(pair.first) - brightness(pair.second)) > 100


def test_a_run_whose_encoder_sees_no_images_leaves_the_choice_of_pairs_to_the_store(base, store, tmp_path):
    fill(store, np.random.default_rng(0))
    studio = Studio(write_user_run(tmp_path / "run", base, "one_hot"), store, PROMPTS)
    list(studio.prepare())
    (question,) = store.questions("ada", choose=lambda pairs: studio.next_pair("ada", pairs))
    store.vote(question.id, "ada", "left")
    assert studio.words("ada") == ""


def test_a_run_that_is_not_personalised_is_refused_and_a_model_without_one_has_none(base, store, tmp_path):
    with pytest.raises(ConfigError, match="not personalised"):
        Studio(write_run(tmp_path / "dpo", base), store)
    assert shipped(str(base)) is None
    assert shipped("assets/tiny-sd3") is None
    name = shipped("assets/tiny-sd")
    assert name is not None
    assert Studio(name, store).run.base == "assets/tiny-sd"
