"""Train the embedded Stable Diffusion 3 from nothing, on the shapes world, and write it with its model card.

    python scripts/pretrain_tiny_sd3.py --output_dir assets/tiny-sd3

Autoencoder and tokenizer are those of assets/tiny-sd. Stages: cached latents, both text encoders and the transformer together
(flow matching), measurements. A killed run goes on from its last checkpoint in --work_dir; remove that folder to start afresh.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from diffalign.data.world.captions import random_caption
from diffalign.data.world.scenes import Scene
from pretrain_tiny import LATENT, TOKENS, cache_latents, text_config
from rounds import start_from, steps
from tiny_card import save

WIDTH, SHIFT = 64, 2.0  # of one text encoder; of the timesteps, towards noise


def new_text_encoder(vocabulary: int, activation: str) -> Any:
    return CLIPTextModelWithProjection(text_config(vocabulary, WIDTH, 4 * WIDTH, 3, activation))


def new_transformer() -> Any:
    return SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        caption_projection_dim=128,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=LATENT // 2,
        qk_norm="rms_norm",
    )


class Prompts(torch.nn.Module):
    """Both text encoders as the stock pipeline joins them: the last hidden state but one side by side, then a zero of the absent T5."""

    def __init__(self, args: argparse.Namespace, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        names = {"text_encoder": "quick_gelu", "text_encoder_2": "gelu"}
        self.encoders = torch.nn.ModuleList(
            start_from(args.init_from, name, new_text_encoder(len(tokenizer), activation)) for name, activation in names.items()
        )
        self.tokenizer = tokenizer

    def forward(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (N, L + 1, D) and pooled ones (N, D)."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
        tokens = tokens.to(next(self.parameters()).device)
        out = [encoder(tokens, output_hidden_states=True) for encoder in self.encoders]
        words = torch.cat([o.hidden_states[-2] for o in out], dim=-1)
        return torch.cat([words, torch.zeros_like(words[:, :1])], dim=1), torch.cat([o.text_embeds for o in out], dim=-1)


@contextlib.contextmanager
def counted(times: int) -> Iterator[None]:
    """Let attention count the last token `times` times.

    The stock pipeline puts `max_sequence_length` (256) zeros where T5 is absent. Equal tokens without a position stay equal through
    all layers, so one of them with log(times) added to its attention logits is the same network at a third of the work.
    """
    plain = functional.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        bias = torch.zeros(key.shape[-2], device=key.device)
        bias[-1] = math.log(times)
        return plain(query, key, value, attn_mask=bias.view(1, 1, 1, -1).expand(1, 1, query.shape[-2], -1), **options)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def train(args: argparse.Namespace, latents: torch.Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, device: torch.device):
    """Return transformer and text encoders (their moving averages), trained together on the velocity, at logit-normal times."""
    transformer = start_from(args.init_from, "transformer", new_transformer()).to(device)
    text = Prompts(args, tokenizer).to(device)
    both = torch.nn.ModuleList([transformer, text])
    optimizer = torch.optim.AdamW(both.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.05)
    ema = EMAModel(both.parameters(), decay=0.998)
    state = {"model": both, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    for step in steps(args.work_dir / "denoiser.pt", state, args.last_step or args.steps, 250, "denoiser"):
        rng = np.random.default_rng([args.seed, 3, step])
        torch.manual_seed(args.seed * 1_000_003 + step)
        rows = rng.integers(len(latents), size=args.batch_size)
        keep = [1.0 if rng.random() < 0.25 else 0.5 for _ in rows]
        captions = ["" if rng.random() < 0.1 else random_caption(scenes[i], rng, k) for i, k in zip(rows, keep, strict=True)]
        x0 = latents[torch.from_numpy(rows)].to(device)
        noise, uniform = torch.randn_like(x0), torch.sigmoid(torch.randn(len(x0), 1, 1, 1, device=device))
        t = SHIFT * uniform / (1.0 + (SHIFT - 1.0) * uniform)
        words, pooled = text(captions)
        with counted(2 ** int(rng.integers(9))):  # so that any max_sequence_length draws alike
            velocity = transformer((1.0 - t) * x0 + t * noise, words, pooled, 1000.0 * t.flatten()).sample
        loss = (velocity - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.step(both.parameters())
    ema.copy_to(both.parameters())
    return transformer.eval(), text.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("assets/tiny-sd3"))
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/pretrain_tiny_sd3"), help="checkpoints of a run in progress")
    parser.add_argument("--init_from", type=Path, help="a folder that an earlier round wrote: go on from its weights, with a new work_dir")
    parser.add_argument("--base", type=Path, default=Path("assets/tiny-sd"), help="whose autoencoder and tokenizer are taken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=9000, help="length of the learning rate's schedule")
    parser.add_argument("--last_step", type=int, help="stop here, before the schedule ends")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--images", type=int, default=40_000, help="drawings whose latents are cached")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    set_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = CLIPTokenizer.from_pretrained(args.base / "tokenizer")
    autoencoder: Any = AutoencoderKL
    vae = autoencoder.from_pretrained(args.base / "vae").to(device).eval().requires_grad_(False)
    latents, scenes = cache_latents(args, vae, device, shift=True)
    transformer, text = train(args, latents, scenes, tokenizer, device)
    first, second = text.encoders
    kind: Any = StableDiffusion3Pipeline
    pipe = kind(transformer, FlowMatchEulerDiscreteScheduler(shift=SHIFT), vae, first, tokenizer, second, tokenizer, None, None)
    about = "two CLIP text encoders and no T5, autoencoder of factor 8, MMDiT of 6 blocks, flow matching with shift 2"
    save(args, pipe, "Stable Diffusion 3", about, max_sequence_length=1)


if __name__ == "__main__":
    main()
