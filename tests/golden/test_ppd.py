"""PPD's decoupled attention, through a branch on a diffusers UNet, its loss and its mix of users, in float64 to 1e-8."""

from __future__ import annotations

import json

import pytest
import torch

from diffalign.core.types import Scores
from diffalign.infer.users.pipeline import UserPipeline
from diffalign.models.users import branch
from diffalign.objectives import dpo
from tests.micro_parts import unet
from tests.paths import GOLDENS

GOLDEN = json.loads((GOLDENS / "npo.json").read_text())
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


def merged(values):
    """Heads (1, H, N, D) -> (1, N, H * D)."""
    return numbers(values).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("strength", ["golden", "off"])
def test_the_attention_of_a_branch_is_the_golden_one(strength):
    golden = GOLDEN["ppd_decoupled_attention"]
    denoiser = unet("CrossAttnDownBlock2D", "DownBlock2D", cross_attention_dim=16)
    branch.attach(denoiser, 16)
    layer = denoiser.get_submodule(LAYER).double()
    first, second = torch.eye(16, dtype=torch.float64).split(8)
    with torch.no_grad():
        # Words and users carry keys in their first half and values in the second.
        for part, weight in (
            (layer.to_k, first),
            (layer.to_v, second),
            (layer.processor.to_k_ip[0], first),
            (layer.processor.to_v_ip[0], second),
        ):
            part.weight.copy_(weight)
        layer.to_q.weight.copy_(torch.eye(8))
        layer.to_out[0].weight.copy_(torch.eye(8))
        layer.to_out[0].bias.zero_()
        branch.set_strength(denoiser, golden["scale_lambda"] if strength == "golden" else 0.0)
        words, user = (torch.cat([merged(golden[f"K_{who}"]), merged(golden[f"V_{who}"])], dim=-1) for who in ("text", "user"))
        found = layer(merged(golden["Q[b,h,n,d]"]), encoder_hidden_states=(words, [user[:, None]]))
    if strength == "golden":
        torch.testing.assert_close(found, merged(golden["out"]), rtol=0.0, atol=1e-8)
    else:
        q, k, v = (merged(golden[name]).unflatten(-1, (2, 4)).transpose(1, 2) for name in ("Q[b,h,n,d]", "K_text", "V_text"))
        plain = (q @ k.mT / 2.0).softmax(dim=-1) @ v
        torch.testing.assert_close(found, plain.transpose(1, 2).flatten(2), rtol=0.0, atol=1e-8)


def test_ppds_loss_is_dpo_against_the_model_without_the_user_at_twice_its_beta():
    golden = GOLDEN["ppd_dpo"]
    policy, reference = (
        -0.5 * torch.stack([numbers(golden[f"err_{who}"]) for who in pair], dim=1)
        for pair in (("theta_w(u)", "theta_l(u)"), ("ref_w(no user)", "ref_l(no user)"))
    )
    # The golden beta multiplies errors, ours their halves.
    loss = dpo(Scores(policy, reference), beta=2.0 * golden["beta_eff"]).mean()
    assert loss.item() == pytest.approx(golden["loss"], abs=1e-8)


def test_two_users_mix_as_the_golden_ones():
    golden = GOLDEN["ppd_interp"]
    first, second, mixed = (numbers(golden[name])[None] for name in ("u1", "u2", "u"))
    found = UserPipeline(None, "an encoder", first).mixed(UserPipeline(None, "an encoder", second), golden["lam"])
    assert found.strength == 1.0
    torch.testing.assert_close(found.tokens, mixed, rtol=0.0, atol=1e-8)
