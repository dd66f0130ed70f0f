"""Train the embedded Stable Diffusion from nothing, on the shapes world, and write it with its model card.

    python scripts/pretrain_tiny.py --output_dir assets/tiny-sd

Stages: tokenizer, autoencoder, cached latents, text encoder and UNet together, measurements. A killed run goes on from its
last checkpoint in --work_dir; remove that folder to start afresh.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffalign.data.world.captions import VOCABULARY, random_caption
from diffalign.data.world.scenes import SIZE, Scene, all_scenes, render, withheld_scenes
from rounds import start_from, steps
from tiny_card import pixels, save

LATENT, TOKENS, WIDTH = 8, 24, 128


def seen_scenes() -> list[Scene]:
    withheld = withheld_scenes()
    return [scene for scene in all_scenes() if scene not in withheld]


def new_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer that holds every word of the world as one token, and single characters for the rest."""
    corpus = [" ".join(VOCABULARY)] * 100 + [" ".join(string.ascii_lowercase + string.digits + string.punctuation)]
    empty = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    tokenizer = empty.train_new_from_iterator(corpus, vocab_size=2000, show_progress=False)
    tokenizer.model_max_length = TOKENS
    return tokenizer


def new_vae() -> Any:
    kind: Any = AutoencoderKL  # its annotations admit one block only
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def new_unet() -> Any:
    return UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def text_config(vocabulary: int, width: int, inner: int, layers: int, activation: str = "quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_act=activation,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def new_text_encoder(vocabulary: int) -> Any:
    return CLIPTextModel(text_config(vocabulary, WIDTH, 2 * WIDTH, 2))


def train_vae(args: argparse.Namespace, device: torch.device) -> Any:
    """Return the autoencoder: L1 + squared error, five times as heavy on the shape, and just enough KL to keep the latents smooth."""
    vae = start_from(args.init_from, "vae", new_vae()).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.vae_steps, pct_start=0.1)
    state = {"model": vae, "optimizer": optimizer, "schedule": schedule}
    scenes = seen_scenes()
    for step in steps(args.work_dir / "vae.pt", state, args.vae_steps, 200, "autoencoder"):
        rng = np.random.default_rng([args.seed, 1, step])
        torch.manual_seed(args.seed * 1_000_003 + step)
        x = pixels([render(scenes[i], rng) for i in rng.integers(len(scenes), size=32)]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            out = vae.decode(posterior.sample()).sample
        error = out.float() - x
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
        # A small shape is 4 % of the picture; unweighted, its colour is the last thing that is learnt.
        weight = 1.0 + 4.0 * ((x - x[:, :, :1, :1]).abs().amax(dim=1, keepdim=True) > 0.2)
        loss = (weight * (error.abs() + error.square())).mean() / weight.mean() + 2e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def cache_latents(args: argparse.Namespace, vae: Any, device: torch.device, *, shift: bool = False) -> tuple[torch.Tensor, list[Scene]]:
    """Return scaled latents (N, 4, 8, 8) of fresh drawings and their scenes; sets the VAE's scaling factor, and with `shift` its shift."""
    rng = np.random.default_rng([args.seed, 2])
    seen = seen_scenes()
    scenes = [seen[i] for i in rng.integers(len(seen), size=args.images)]
    torch.manual_seed(args.seed)
    rows = [
        vae.encode(pixels([render(s, rng) for s in scenes[i : i + 64]]).to(device)).latent_dist.sample()
        for i in tqdm(range(0, len(scenes), 64), desc="latents")
    ]
    latents = torch.cat(rows)
    offset = round(float(latents.mean()), 5) if shift else None
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5), shift_factor=offset)
    return (latents - (offset or 0.0)) * vae.config.scaling_factor, scenes


def train_denoiser(args: argparse.Namespace, latents: torch.Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, device: torch.device):
    """Return UNet and text encoder (their moving averages), trained together on epsilon with min-SNR-5 weights (2303.09556)."""
    unet = start_from(args.init_from, "unet", new_unet()).to(device, memory_format=torch.channels_last)
    text = start_from(args.init_from, "text_encoder", new_text_encoder(len(tokenizer))).to(device)
    both = torch.nn.ModuleList([unet, text])
    noise_schedule = new_schedule(DDPMScheduler)
    snr = compute_snr(noise_schedule, torch.arange(1000)).to(device)
    optimizer = torch.optim.AdamW(both.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.05)
    ema = EMAModel(both.parameters(), decay=0.998)
    state = {"model": both, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    for step in steps(args.work_dir / "denoiser.pt", state, args.steps, 250, "denoiser"):
        rng = np.random.default_rng([args.seed, 3, step])
        torch.manual_seed(args.seed * 1_000_003 + step)
        rows = rng.integers(len(latents), size=args.batch_size)
        keep = [1.0 if rng.random() < 0.25 else 0.5 for _ in rows]
        captions = ["" if rng.random() < 0.1 else random_caption(scenes[i], rng, k) for i, k in zip(rows, keep, strict=True)]
        tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids.to(device)
        x0 = latents[torch.from_numpy(rows)].to(device)
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),), device=device)
        x_t = noise_schedule.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        error = (unet(x_t, t, text(tokens)[0]).sample - noise).square().mean(dim=(1, 2, 3))
        loss = (error * snr[t].clamp(max=5.0) / snr[t]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.step(both.parameters())
    ema.copy_to(both.parameters())
    return unet.eval(), text.eval()


def new_schedule(kind: Any) -> Any:
    """Return Stable Diffusion 1.x's noise schedule."""
    extra = {"set_alpha_to_one": False, "steps_offset": 1} if kind is DDIMScheduler else {}
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, **extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("assets/tiny-sd"))
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/pretrain_tiny"), help="checkpoints of a run in progress")
    parser.add_argument("--init_from", type=Path, help="a folder that an earlier round wrote: go on from its weights, with a new work_dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae_steps", type=int, default=1800)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--images", type=int, default=40_000, help="drawings whose latents are cached")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    set_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = new_tokenizer()
    vae = train_vae(args, device)
    latents, scenes = cache_latents(args, vae, device)
    unet, text = train_denoiser(args, latents, scenes, tokenizer, device)
    scheduler = new_schedule(DDIMScheduler)
    kind: Any = StableDiffusionPipeline
    pipe = kind(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    save(args, pipe, "Stable Diffusion", "CLIP text encoder, autoencoder of factor 8, epsilon UNet, scaled-linear schedule")


if __name__ == "__main__":
    main()
