"""Weights of several rewards that a network reads from the prompt: by arithmetic, and from votes to every place that combines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffalign.core.errors import CheckpointError, ConfigError, RecordError, TableError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.transforms.scores import combined as transform
from diffalign.methods.config import TrainConfig
from diffalign.rewards.combine import combiner_of
from diffalign.rewards.heads.embeds import PixelEmbeds
from diffalign.rewards.heads.mixed import ArmoHead
from diffalign.rewards.heads.networks import NOBODY, HeadSizes, Targets
from diffalign.rewards.heads.settings import ArmoSettings, OrchestratorSettings
from diffalign.rewards.heads.weighing import OrchestratorHead
from diffalign.rewards.prompt_weights import PromptWeights
from diffalign.rewards.table import check_scorers, load_scorer
from diffalign.train.align import align
from diffalign.train.online.rewards import Combination
from tests.rewards.heads.test_training import run_of
from tests.shades import Shade, add_scorer

NAMES = ["light", "dark"]
PLACES = ("sea", "home", "work", "school", "rest", "play", "court", "large")
QUICK = {"train_batch_size": 16, "max_train_steps": 60, "learning_rate": 2e-2, "log_every": 60, "held_out_share": 0.1}
PICTURES = [Image.new("RGB", (4, 4), (shade,) * 3) for shade in (20, 120, 230)]


def head_of(weights, **constants):
    """Return a head that gives all prompts the same weights."""
    head = OrchestratorHead(OrchestratorSettings(scores=NAMES, hidden=1, **constants), HeadSizes(2, 1))
    with torch.no_grad():
        for parameter in head.gate.parameters():
            parameter.zero_()
        head.gate[2].bias.copy_(torch.tensor(weights).log())
    return head


def loss(head, scores, prob):
    _, losses = head(torch.tensor([scores]), torch.zeros(1, 1), torch.tensor([NOBODY]), Targets(torch.tensor([prob])))
    return losses.item()


def test_the_loss_is_how_far_the_weights_are_from_the_softmax_of_the_preferred_scores():
    """Scores (ln 3, 0) have the softmax (3/4, 1/4), and (0, 0) that of (1/2, 1/2); the weights are (1/3, 2/3)."""
    first = 0.75 * math.log(0.75 * 3) + 0.25 * math.log(0.25 * 1.5)
    second = 0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.5 * 1.5)
    scores = [[math.log(3.0), 0.0], [0.0, 0.0]]
    for prob, wanted in ((1.0, first), (0.0, second), (0.25, 0.25 * first + 0.75 * second)):
        assert loss(head_of([1 / 3, 2 / 3]), scores, prob) == pytest.approx(wanted, rel=1e-5)
    warm = 0.9 * math.log(0.9 * 3) + 0.1 * math.log(0.1 * 1.5)  # at temperature 1/2, 3^2 to 1
    assert loss(head_of([1 / 3, 2 / 3], temperature=0.5), scores, 1.0) == pytest.approx(warm, rel=1e-5)


def test_votes_teach_by_the_logistic_loss_of_the_weighted_scores():
    """The rewards are 2 * (1/3 * 1 + 2/3 * 4) = 6 and 2 * (1/3 * 2 + 2/3 * 1/2) = 2."""
    head = head_of([1 / 3, 2 / 3], learn="votes")
    with torch.no_grad():
        head.factor.fill_(2.0)
    scores = [[1.0, 4.0], [2.0, 0.5]]
    rewards = head(torch.tensor([scores]), torch.zeros(1, 1), torch.tensor([NOBODY]))
    torch.testing.assert_close(rewards, torch.tensor([[6.0, 2.0]]))
    for prob, wanted in ((1.0, math.log1p(math.exp(-4.0))), (0.0, math.log1p(math.exp(4.0)))):
        assert loss(head, scores, prob) == pytest.approx(wanted, rel=1e-5)


def test_scores_of_any_scale_are_standardised_and_one_that_never_varies_is_refused():
    head = head_of([0.5, 0.5])
    head.standardise(torch.tensor([[100.0, 0.0001], [300.0, 0.0003]]), torch.zeros(2, 1))
    standard, _ = head.standard(torch.tensor([[[300.0, 0.0003]]]), torch.zeros(1, 1))
    torch.testing.assert_close(standard, torch.ones(1, 1, 2))
    with pytest.raises(ConfigError, match="the score `dark` is 7 for all candidates"):
        head.standardise(torch.tensor([[100.0, 7.0], [300.0, 7.0]]), torch.zeros(2, 1))


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    """Add the scorers `light`, the red of a picture, and `dark`, a thousandth of what it lacks of white; white things have no red."""

    class Dark(Shade):
        def __call__(self, images, prompts):
            return (255.0 - super().__call__(images, prompts)) / 1000.0

    add_scorer(monkeypatch, "light", lambda: Shade("light", 0))
    add_scorer(monkeypatch, "dark", lambda: Dark("dark", 0))


def votes():
    """Return pairs of which the lighter is preferred under prompts of day, and the darker under those of night."""
    rng, records = np.random.default_rng(0), []
    for number in range(96):
        prompt = f"{('day', 'night')[number % 2]} at {' and '.join(rng.choice(PLACES, 2))}"
        shades = [float(shade) for shade in rng.choice(256, 2, replace=False)]
        made = tuple(
            Candidate(image=encode_image(Image.new("RGB", (4, 4), (int(s),) * 3)), scores={"light": s, "dark": (255.0 - s) / 1000.0})
            for s in shades
        )
        prob = float((shades[0] > shades[1]) == prompt.startswith("day"))
        records.append(Record(str(number), prompt, made, prob=prob, source=f"votes line {number}"))
    return records


def run(folder, **constants):
    head = {"orchestrator": {"scores": NAMES, "hidden": 8, **constants}}
    return align("pixels", votes(), method="reward_orchestrator", output_dir=folder, reward_head=head, **QUICK)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return finished runs that learned from votes, and from scores."""
    root = tmp_path_factory.mktemp("orchestrators")
    return {learn: run(root / learn, learn=learn) for learn in ("votes", "scores")}


@pytest.mark.parametrize("learn", ["votes", "scores"])
def test_a_run_weighs_unknown_prompts_by_the_words_it_knows_wherever_rewards_are_combined(runs, learn, tmp_path):
    assert run_of(runs[learn])["held_out"]["accuracy"] >= 0.75  # on prompts that were not trained on
    how = {"prompt_weights": {"path": str(runs[learn])}}
    spec = {"combined": {"scorers": ["dark", "light"], "how": how}}  # in another order than that of the training
    check_scorers([spec])
    scorer = load_scorer(spec)
    day, night = (scorer(PICTURES, [prompt] * 3) for prompt in ("day by water", "night by water"))
    assert day.argmax() == 2
    assert night.argmax() == 0
    np.testing.assert_allclose(
        scorer(PICTURES[::-1], ["day by water", "night by water", "day by water"]), [day[2], night[1], day[0]]
    )  # by itself each
    scores = {"light": np.array([[20.0, 120.0, 230.0]] * 2), "dark": np.array([[0.235, 0.135, 0.025]] * 2)}
    online = Combination(TrainConfig(output_dir=str(tmp_path), combine=how)).of(scores, ["night by water", "day by water"])
    np.testing.assert_allclose(online.rewards, [night, day], rtol=1e-6)
    scores["light"][0, 1] = np.nan  # a picture that cannot be judged leaves out its prompt, and the other keeps its own weights
    online = Combination(TrainConfig(output_dir=str(tmp_path), combine=how)).of(scores, ["night by water", "day by water"])
    np.testing.assert_allclose(online.rewards[1], day, rtol=1e-6)
    assert not online.complete[0]
    assert np.isnan(scorer(PICTURES[:1], ["white night"])[0])


def test_weights_add_up_to_one_and_are_those_of_a_standardised_sum(runs):
    combiner = combiner_of({"prompt_weights": {"path": str(runs["votes"])}})
    weights = combiner.weights(["day at home", "night at home"])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)
    shades = np.array([s.scores["light"] for r in votes() for s in r.candidates])
    mean, deviation = combiner.head.measured
    assert 0.9 < float(deviation[0]) / shades.std() < 1.1  # of the prompts that were not held out
    rewards = {"light": np.array([[50.0]]), "dark": np.array([[0.1]])}
    gaps = [(50.0 - float(mean[0])) / float(deviation[0]), (0.1 - float(mean[1])) / float(deviation[1])]
    expected = weights[0, 0] * gaps[0] + weights[0, 1] * gaps[1]
    np.testing.assert_allclose(combiner.under(rewards, ["day at home"]), [[expected]], rtol=1e-6)


def test_the_gate_of_armo_weighs_real_scores_too():
    """Weights 1/4 and 3/4, of which `dark` is removed with penalty 0.2 from `light`: standardised 2 and -1 make 1/4 * (2 + 0.2 * 1)."""
    head = ArmoHead(ArmoSettings(aspects=NAMES, gate_hidden=1, temperature=1.0, decorrelate="dark"), HeadSizes(256, 64))
    with torch.no_grad():
        for parameter in head.gate.parameters():
            parameter.zero_()
        head.gate[2].bias.copy_(torch.tensor([0.25, 0.75]).log())
    head.penalties.copy_(torch.tensor([0.2, 1.0]))
    head.aspect_mean.copy_(torch.tensor([100.0, 0.5]))
    head.aspect_deviation.copy_(torch.tensor([50.0, 0.25]))
    combiner = PromptWeights(Path("run"), head, PixelEmbeds())
    np.testing.assert_allclose(combiner.under({"dark": [[0.25]], "light": [[200.0]]}, ["day"]), [[0.25 * (2.0 + 0.2)]], rtol=1e-6)


def test_what_cannot_be_weighed_is_refused_in_one_sentence(runs, tmp_path):
    how = {"prompt_weights": {"path": str(runs["votes"])}}
    with pytest.raises(ConfigError, match=r"weighs the scores \['light', 'dark'\]; there are \['light', 'fun'\]"):
        combiner_of(how).under({"light": [[1.0]], "fun": [[1.0]]}, ["day"])
    with pytest.raises(RecordError, match="nan"):
        combiner_of(how).under({"light": [[1.0]], "dark": [[np.nan]]}, ["day"])
    with pytest.raises(ConfigError, match="reads its weights from the prompts"):
        combiner_of(how).combine({"light": [[1.0]], "dark": [[1.0]]})
    with pytest.raises(ConfigError, match=r"weighs scores and sees no pictures; use it as the combiner \{prompt_weights: "):
        load_scorer({"trained": {"path": str(runs["votes"])}})
    with pytest.raises(ConfigError, match="score the table by the scorer `combined`"):
        transform(votes()[0], scores=NAMES, into="reward", how=how)
    with pytest.raises(ConfigError, match=r"weighs the scores \['light', 'dark'\]; there are \['light', 'adherence'\]"):
        check_scorers([{"combined": {"scorers": ["light", "adherence"], "how": how}}])  # before anything is loaded
    (tmp_path / "other").mkdir()
    facts = json.loads((runs["votes"] / "run.json").read_text()) | {"method": "reward_bt"}
    (tmp_path / "other" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="is a run of reward_bt; expected one of reward_orchestrator or reward_armo"):
        combiner_of({"prompt_weights": {"path": str(tmp_path / "other")}})
    gone = {"prompt_weights": {"path": str(tmp_path / "none")}}
    for check in (
        lambda: check_scorers([{"combined": {"scorers": NAMES, "how": gone}}]),
        lambda: Combination(TrainConfig(output_dir=str(tmp_path), combine=gone)),
    ):
        with pytest.raises(CheckpointError, match="none"):
            check()


def test_what_an_orchestrator_cannot_be_trained_on_is_refused(tmp_path):
    for scores, error, message in (
        (["light"], ConfigError, "expected two or more scores of the table"),
        (["light", "light"], ConfigError, "expected two or more scores of the table"),
        (["light", "fun"], TableError, "the score `fun` is missing"),
    ):
        with pytest.raises(error, match=message):
            run(tmp_path / "run", scores=scores)
