"""User encoders: what is known of a user becomes tokens, all weights learn, nobody is zeros, and a file gives back what was saved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.specs import bind
from diffalign.models.users.encoders import Sizes, make
from diffalign.models.users.settings import USER_ENCODERS, OneHotSettings, PairsSettings
from diffalign.models.users.store import load_encoder, load_tokens, save_encoder, save_tokens
from tests.models.users.denoisers import noise

U, D, F, ROWS = 3, 12, 5, 4
SIZES = Sizes(("ann", "bob", "cy"), F, ROWS, "source")
FORMS = {
    "pairs": {"pairs": {"hidden": 8}},
    "variational": {"pairs": {"hidden": 8, "variational": True, "kl_weight": 0.1}},
    "vlm": {"vlm": {"model": "somewhere"}},
    "mixture": {"mixture": {"prototypes": 2}},
    "one_hot": {"one_hot": {}},
    "profile": {"profile": {"profiles": "users.json"}},
    "vector": {"vector": {"vectors": "users.json"}},
    "slider": {"slider": {"attributes": ["brightness", "size"]}},
}


def built(form, **more):
    ((name, constants),) = FORMS[form].items()
    torch.manual_seed(0)
    return make(bind("user_encoder", USER_ENCODERS, {name: {"tokens": U, "width": D, **constants, **more}})(), SIZES)


def known(form, seed=0, hidden=8):
    """Return what is known of two users, the second with a shot fewer."""
    if form in ("pairs", "variational"):
        query = {"user_query": noise(2, 2, F, seed=seed + 9), "user_noise": noise(2, hidden, seed=seed + 8)}
        return {"user": noise(2, 4, 2, F, seed=seed), "user_mask": torch.tensor([[1.0] * 4, [1.0] * 3 + [0.0]]), **query}
    if form in ("mixture", "one_hot"):
        return {"user": torch.tensor([2, 0])}
    if form == "slider":
        return {"user": torch.tensor([[0.2, 1.0], [0.9, 0.0]])}
    return {"user": noise(2, ROWS, F, seed=seed) if form == "vlm" else noise(2, F, seed=seed)}


def test_every_encoder_has_its_form_here():
    assert {name for form in FORMS.values() for name in form} == set(USER_ENCODERS)


@pytest.mark.parametrize("form", FORMS)
def test_an_encoder_gives_tokens_and_learns_with_all_its_weights(form):
    encoder, condition = built(form), known(form)
    tokens = encoder(condition, 2)
    assert tokens.shape == (2, encoder.tokens, D)
    assert encoder.tokens == {"vlm": ROWS, "slider": 2 * U}.get(form, U)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    ((tokens * noise(*tokens.shape)).sum() + encoder.penalty(condition, 0.2).get("penalty", 0.0)).backward()
    # A last bias of the images cancels between the two of a pair.
    learning = {name: parameter for name, parameter in encoder.named_parameters() if name != "image.2.bias"}
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 1e-6 for parameter in learning.values())


@pytest.mark.parametrize("form", FORMS)
def test_nobody_is_zeros_and_a_user_beside_nobody_stays(form):
    encoder, condition = built(form).eval(), known(form)
    both = encoder(condition, 2)
    mixed = encoder({**condition, "user_kept": torch.tensor([0.0, 1.0])}, 2)
    assert not mixed[0].any()
    assert torch.equal(mixed[1], both[1])
    nobody = encoder({"prompt_embeds": torch.zeros(5, 2, 2)}, 5)
    assert nobody.shape == (5, encoder.tokens, D)
    assert not nobody.any()


@pytest.mark.parametrize("form", ["pairs", "variational"])
@torch.no_grad()
def test_the_order_of_the_pairs_changes_nothing_and_empty_places_say_nothing(form):
    encoder, condition = built(form).eval(), known(form)
    tokens = encoder(condition, 2)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {**condition, "user": condition["user"][:, order], "user_mask": condition["user_mask"][:, order]}
    torch.testing.assert_close(encoder(shuffled, 2), tokens, rtol=0.0, atol=1e-5)
    filled = condition["user"].clone()
    filled[1, 3] = 100.0 * noise(2, F, seed=4)
    torch.testing.assert_close(encoder({**condition, "user": filled}, 2), tokens, rtol=0.0, atol=1e-5)
    fewer = {"user": condition["user"][1:, :3], "user_mask": torch.ones(1, 3)}
    torch.testing.assert_close(encoder(fewer, 1), tokens[1:], rtol=0.0, atol=1e-5)


@torch.no_grad()
def test_a_choice_and_its_opposite_are_the_zero_user():
    encoder, pair = built("pairs"), noise(1, 1, 2, F)
    both = {"user": torch.cat([pair, pair.flip(2)], dim=1), "user_mask": torch.ones(1, 2)}
    torch.testing.assert_close(encoder(both, 1), torch.zeros(1, U, D), rtol=0.0, atol=1e-6)
    assert encoder({"user": pair, "user_mask": torch.ones(1, 1)}, 1).abs().max() > 1e-3


@torch.no_grad()
def test_who_chooses_the_opposite_says_the_opposite_before_it_is_refined():
    encoder, condition = built("pairs"), known("pairs")
    encoder.refine[-1].weight.zero_()
    opposite = {**condition, "user": condition["user"].flip(2)}
    torch.testing.assert_close(encoder.taste(opposite), -encoder.taste(condition))
    assert (encoder(opposite, 2) - encoder(condition, 2)).abs().max() > 1e-3


@torch.no_grad()
def test_features_are_seen_relative_to_those_of_the_training():
    encoder, condition = built("pairs"), known("pairs")
    plain = encoder(condition, 2)
    encoder.standardise(3.0 + 2.0 * torch.tensor([[-1.0], [0.0], [1.0]]).expand(3, F))  # mean 3, deviation 2
    torch.testing.assert_close(encoder({**condition, "user": 3.0 + 2.0 * condition["user"]}, 2), plain, rtol=1e-4, atol=1e-5)


def posterior(mean, log_variance, **more):
    """Return a variational encoder, two numbers wide, that thinks the same of everybody."""
    encoder = built("variational", hidden=2, preference_weight=0.0, kl_cycles=2, **{"kl_weight": 0.3, **more})
    torch.nn.init.zeros_(encoder.posterior.weight)
    encoder.posterior.bias.data = torch.tensor([*mean, *log_variance])
    return encoder


def test_the_kl_is_that_of_two_normals_by_hand():
    # -1/2 sum(1 + v - m^2 - exp v) = -1/2 [(1 + 0 - 0.25 - 1) + (1 - 0.5 - 1 - exp(-0.5))]
    facts = posterior((0.5, -1.0), (0.0, -0.5)).penalty(known("variational", hidden=2), 0.25)
    assert facts["user/kl"].item() == pytest.approx(0.5 * (0.25 + 0.5 + math.exp(-0.5)), rel=1e-6)
    # means and log-variances end at one: 1/2 [1 + (exp(1) - 2)] for each dimension
    assert posterior((5.0, -5.0), (9.0, 9.0)).penalty(known("variational", hidden=2), 0.25)["user/kl"].item() == pytest.approx(
        math.e - 1.0, rel=1e-6
    )


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.125, 0.5), (0.25, 1.0), (0.4, 1.0), (0.5, 0.0), (0.5625, 0.146447), (0.75, 1.0), (0.99, 1.0)]
)
def test_the_weight_of_the_kl_anneals_along_half_a_cosine_twice(progress, share):
    facts = posterior((0.5, -1.0), (0.0, -0.5)).penalty(known("variational", hidden=2), progress)
    assert facts["penalty"].item() == pytest.approx(0.3 * share * facts["user/kl"].item(), abs=1e-6)


def test_a_posterior_that_says_the_same_of_all_is_not_active_and_a_live_one_is():
    assert posterior((0.5, -1.0), (0.0, -0.5)).penalty(known("variational", hidden=2), 0.5)["user/active"] == 0.0
    one = {name: value[:1] for name, value in known("variational", hidden=2).items()}
    live = posterior((0.0, 0.0), (0.0, 0.0))
    torch.nn.init.eye_(live.posterior.weight)
    assert live.penalty(one, 0.5)["user/active"] == 1.0  # also in a batch of one


@torch.no_grad()
def test_the_posterior_is_sampled_in_training_alone():
    encoder, condition = built("variational"), known("variational")
    quiet = {name: value for name, value in condition.items() if name != "user_noise"}
    sampled, mean = encoder(condition, 2), encoder(quiet, 2)
    assert (sampled - mean).abs().max() > 1e-3
    torch.testing.assert_close(encoder.taste(condition).norm(dim=1), torch.full((2,), math.sqrt(8.0)))
    encoder.eval()
    assert torch.equal(encoder(condition, 2), mean)


def test_the_penalty_of_plain_pairs_is_the_loss_of_predicting_the_query():
    # Two images alike: ln 2 whatever the user.
    encoder, condition = built("pairs", preference_weight=0.5), known("pairs")
    alike = {**condition, "user_query": condition["user_query"][:, :1].expand(2, 2, F)}
    facts = encoder.penalty(alike, 0.3)
    assert facts.keys() == {"penalty", "user/accuracy"}
    assert facts["penalty"].item() == pytest.approx(0.5 * math.log(2.0), rel=1e-6)
    query = condition["user_query"]
    one, other = (encoder.penalty({**condition, "user_query": way}, 0.3) for way in (query, query.flip(1)))
    assert one["user/accuracy"] + other["user/accuracy"] == 1.0


@torch.no_grad()
def test_a_mixture_is_a_share_of_each_prototype():
    encoder = built("mixture", prototypes=3)
    corners = encoder({"user_weights": torch.eye(3)}, 3)
    assert torch.equal(corners.flatten(1), encoder.prototypes)
    weights = encoder.logits.weight.softmax(dim=-1)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    expected = torch.einsum("np,pud->nud", weights[[2, 0]], corners)
    torch.testing.assert_close(encoder(known("mixture"), 2), expected)
    assert torch.equal(encoder.usual(), encoder.logits.weight.mean(dim=0))


@torch.no_grad()
def test_the_tokens_of_a_slider_are_of_its_value_alone_and_zeros_where_it_is_off():
    encoder = built("slider", frequency=1000.0)
    both, off, other = (
        encoder({"user": torch.tensor([row])}, 1)[0].unflatten(0, (2, U)) for row in ([0.3, 0.8], [0.3, math.nan], [0.3, 0.1])
    )
    assert torch.equal(off[0], both[0])
    assert torch.equal(other[0], both[0])
    assert (other[1] - both[1]).abs().max() > 1e-3
    assert not off[1].any()
    assert not encoder({"user": torch.full((1, 2), math.nan)}, 1).any()
    # AttriCtrl's value encoder: cosines and sines of 1000 v / 10000^(i / 128), two layers, and a learned place for each token
    angles = 1000.0 * np.float32(0.8) * 10000.0 ** (-np.arange(128) / 128)
    first, _, last = (part for part in encoder.values[1])
    hidden = first.weight.numpy() @ np.concatenate([np.cos(angles), np.sin(angles)]) + first.bias.numpy()
    value = last.weight.numpy() @ (hidden / (1.0 + np.exp(-hidden))) + last.bias.numpy()
    np.testing.assert_allclose(both[1], value + encoder.places[1].numpy(), atol=1e-4)


@torch.no_grad()
def test_a_slow_slider_moves_its_tokens_ever_farther_and_a_fast_one_back_and_forth():
    def path(frequency):
        values = torch.linspace(0.0, 1.0, 11)[:, None].expand(-1, 2)
        tokens = built("slider", frequency=frequency)({"user": values}, 11).flatten(1)
        return (tokens - tokens[0]).norm(dim=1)

    assert (path(1.0).diff() > 0).all()
    assert not (path(1000.0).diff() > 0).all()


@torch.no_grad()
def test_sliders_in_half_precision_keep_their_values():
    encoder, values = built("slider"), {"user": torch.tensor([[0.301, 0.8]])}
    whole, half = encoder(values, 1), encoder.bfloat16()(values, 1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.03, rtol=0.03)


def test_sliders_that_are_left_out_are_off_and_wrong_ones_are_named():
    encoder = built("slider")
    torch.testing.assert_close(encoder.set_to({"size": 1}), torch.tensor([math.nan, 1.0]), equal_nan=True)
    torch.testing.assert_close(encoder.set_to({"size": None, "brightness": 0.5}), torch.tensor([0.5, math.nan]), equal_nan=True)
    for value in (-0.1, 1.01, math.nan, True, "0.5"):
        with pytest.raises(ConfigError, match=r"slider `size` is .*; expected a number from 0, lowest, to 1"):
            encoder.set_to({"size": value})
    with pytest.raises(ConfigError, match=r"`slider` is 'sise'\. Did you mean `size`\?"):
        encoder.set_to({"sise": 0.5})


@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_back_the_encoder(form, tmp_path):
    encoder = built(form)
    if form in ("pairs", "variational"):
        encoder.standardise(noise(9, F, seed=2))
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]
    again = load_encoder(tmp_path / "encoder.safetensors")
    assert (again.settings, again.sizes) == (encoder.settings, encoder.sizes)
    assert again.fingerprint() == encoder.fingerprint()
    assert torch.equal(again(known(form), 2), encoder.eval()(known(form), 2))
    assert not any(module.training for module in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_the_fingerprint_changes_with_any_weight_and_with_what_is_seen(form):
    encoder = built(form)
    found = {encoder.fingerprint(), make(encoder.settings, Sizes(SIZES.users, F, ROWS, "other")).fingerprint()}
    for value in encoder.state_dict().values():
        value.flatten()[-1:] += 1.0
        found.add(encoder.fingerprint())
    own = {"mixture": 1}.get(form, 0)  # a user's weights of the prototypes, which change nobody else's tokens
    assert len(found) == 2 + len(encoder.state_dict()) - own


def test_a_file_that_holds_no_encoder_is_refused(tmp_path):
    file, tokens = tmp_path / "encoder.safetensors", tmp_path / "tokens.safetensors"
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: cannot be read"):
        load_encoder(file)
    file.write_text("no safetensors")
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        load_encoder(file)
    save_tokens(noise(U, D), tokens, "some encoder")
    with pytest.raises(CheckpointError, match="holds no user encoder"):
        load_encoder(tokens)
    save_encoder(built("one_hot"), file)
    with pytest.raises(CheckpointError, match="holds no user's tokens"):
        load_tokens(file, "some encoder")
    with pytest.raises(CheckpointError, match=r"user encoder some encoder"):
        load_tokens(tokens, "another")
    assert torch.equal(load_tokens(tokens, "some encoder"), noise(U, D))
    save_tokens(noise(U, D) / 0.0, tmp_path / "not" / "there" / "yet.safetensors", "some encoder")
    with pytest.raises(CheckpointError, match=r"yet\.safetensors: .*finite"):
        load_tokens(tmp_path / "not" / "there" / "yet.safetensors", "some encoder")


@pytest.mark.parametrize("change", [lambda value: value / 0.0, lambda value: value.half()], ids=["infinite", "half"])
def test_weights_that_are_no_float32_numbers_are_refused(tmp_path, change):
    file, encoder = tmp_path / "encoder.safetensors", built("vector")
    save_encoder(encoder, file)
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    save_file({**load_file(file), "read.weight": change(encoder.read.weight.detach())}, file, metadata=facts)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: read\.weight is not of finite float32 numbers"):
        load_encoder(file)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({}, r"does not say what encoder of `one_hot` it holds \(KeyError\('sizes'\)\)"),
        ({"settings": "{}", "sizes": "{"}, "sizes: not JSON"),
        ({"settings": '{"depth": 3}', "sizes": '{"users": []}'}, "does not say what encoder.*depth"),
        ({"settings": '{"tokens": 9}', "sizes": '{"users": ["ann"]}'}, "its weights are not those of the encoder it names"),
        ({"settings": '{"tokens": 0}', "sizes": '{"users": []}'}, r"does not say what encoder.*`tokens` is 0"),
        ({"settings": '{"tokens": 4000000000, "width": 4000000000}', "sizes": '{"users": []}'}, r"encoder\.safetensors: "),
        ({"settings": '{"tokens": 100000, "width": 100000}', "sizes": '{"users": ["ann", "bob"]}'}, "its weights are not those"),
        ({"settings": "[]", "sizes": "[]"}, "does not say what encoder"),
    ],
)
def test_an_encoder_of_another_kind_than_its_file_says_is_refused(tmp_path, facts, sentence):
    file = tmp_path / "encoder.safetensors"
    save_encoder(built("one_hot"), file)
    save_file(load_file(file), file, metadata={"encoder": "one_hot", **facts})
    with pytest.raises(CheckpointError, match=sentence):
        load_encoder(file)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"pairs": {"max_shots": 0}}, "`max_shots` is 0; expected at least 1"),
        ({"pairs": {"kl_weight": -1e-3}}, r"`kl_weight` is -0\.001; expected at least 0"),
        ({"pairs": {"preference_weight": math.nan}}, "`preference_weight` is nan"),
        ({"pairs": {"hiden": 3}}, r"takes no `hiden`\. Did you mean `hidden`\?"),
        ({"pairs": {"tokens": "four"}}, "`tokens` is 'four'; expected int"),
        ({"mixture": {"prototypes": True}}, "`prototypes` is True; expected int"),
        ({"vlm": {}}, "needs `model`"),
        ({"vlm": {"model": "m", "per_user": 1}}, "`per_user` is 1; expected at least 2"),
        ({"profile": {}}, "needs `profiles`"),
        ("slider", "needs `attributes`"),
        ({"slider": {"attributes": []}}, r"`attributes` is \[\]; expected a list of the table's scores"),
        ({"slider": {"attributes": "size"}}, "`attributes` is 'size'; expected a list"),
        ({"slider": {"attributes": ["size", "size"]}}, "`attributes` names `size` twice"),
        ({"slider": {"attributes": ["size"], "frequency": 0.1}}, r"`frequency` is 0\.1; expected more than 0\.1"),
        ({"slider": {"attributes": ["size"], "dropout": 1.0}}, r"`dropout` is 1\.0; expected a share below 1"),
        ("one_hott", r"there is no user_encoder `one_hott`\. Did you mean `one_hot`\?"),
    ],
)
def test_constants_that_cannot_be_meant_are_named(spec, sentence):
    with pytest.raises(ConfigError, match=sentence):
        bind("user_encoder", USER_ENCODERS, spec)()


def test_what_users_must_bring_depends_on_the_encoder():
    assert bind("user_encoder", USER_ENCODERS, {"pairs": {"max_shots": 8}})() == PairsSettings(max_shots=8)
    assert bind("user_encoder", USER_ENCODERS, "one_hot")().least == OneHotSettings().least == 2
    assert bind("user_encoder", USER_ENCODERS, {"vlm": {"model": "m", "shots": 3}})().least == 6
