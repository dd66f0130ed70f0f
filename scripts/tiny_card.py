"""What the embedded models are saved with: half-precision weights, a sheet of pictures, and a model card with measured numbers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import entropy

from diffalign.data.world.captions import full_caption
from diffalign.data.world.judge import mean_adherence, read
from diffalign.data.world.scenes import ATTRIBUTES, render, withheld_scenes
from diffalign.infer.sample import draw, grid
from diffalign.models.backbones.table import load_pipeline


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """Return images as (N, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def measure(folder: Path, seed: int, max_sequence_length: int | None) -> dict:
    """Return the numbers of the model card, measured on the model as saved, and write the sample grid beside it."""
    pipe = load_pipeline(str(folder))
    rng = np.random.default_rng([seed, 4])
    told: dict[str, Any] = {"guidance_scale": 4.0, "max_sequence_length": max_sequence_length}
    withheld = sorted(withheld_scenes(), key=full_caption)
    prompts = [full_caption(withheld[i]) for i in rng.permutation(len(withheld))[:300]]
    specified = draw(pipe, prompts, range(10_000, 10_300), **told)
    stars = [read(image) for image in draw(pipe, ["a star"] * 200, range(20_000, 20_200), **told)]
    loose = draw(pipe, ["a star", "a large ring", "a red heart", ""] * 8, range(30_000, 30_032), **told)
    grid(specified[:32] + loose, 16).save(folder / "samples.png")
    drawings = [render(withheld[i], rng) for i in rng.integers(len(withheld), size=256)]
    with torch.no_grad():
        x = pixels(drawings)
        back = pipe.vae(x).sample.clamp(-1, 1)
    rebuilt = [Image.fromarray(((i.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)) for i in back]
    same = [read(a).attributes == read(b).attributes for a, b in zip(drawings, rebuilt, strict=True)]
    spread = {}
    for name in ("color", "size", "position", "background"):
        counts = np.array([sum(r.attributes.get(name) == value for r in stars) for value in ATTRIBUTES[name]])
        spread[name] = [round(float(entropy(counts, base=2)), 2), round(float(np.log2(len(counts))), 2)]
    psnr = -10 * np.log10(float((x - back).square().mean(dim=(1, 2, 3)).mean()) / 4)
    longest = {}
    if max_sequence_length is not None:
        at_default = draw(pipe, prompts[:100], range(10_000, 10_100), guidance_scale=4.0)
        longest = {"adherence_withheld_100_at_the_default_length": round(mean_adherence(prompts[:100], at_default), 4)}
    return {
        "adherence_withheld_300": round(mean_adherence(prompts, specified), 4),
        **longest,
        "is_a_star": round(float(np.mean([r.attributes.get("shape") == "star" for r in stars])), 3),
        "entropy_bits_of_a_star_[measured, uniform]": spread,
        "autoencoder_psnr_db": round(float(psnr), 2),
        "autoencoder_attributes_kept": round(float(np.mean(same)), 4),
        "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.suffix == ".safetensors"),
    }


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {name}: a {kind} of 64x64 shapes

A complete `{pipeline}` ({parts}) of {parameters:.1f} M parameters. It knows one world: a shape of one colour, size and place on a
plain background. One combination of the five attributes in eight was withheld from training.

![first two rows: withheld captions; then "a star", "a large ring", "a red heart", and the empty prompt, in turn](samples.png)

Written by `{command}` in {minutes:.0f} minutes.

Measured on the saved weights, 25 steps, guidance 4, seed {seed}{told}:

```json
{numbers}
```

`adherence`: share of the named attributes that a program reads back from the picture. Text length: 24 tokens.
"""


def save(args: argparse.Namespace, pipe: Any, kind: str, parts: str, max_sequence_length: int | None = None) -> None:
    """Write half-precision safetensors, the grid and the card to `--output_dir`."""
    pipe.to("cpu").to(torch.float16).save_pretrained(args.output_dir)
    for config in args.output_dir.glob("text_encoder*/config.json"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    for tokenizer in args.output_dir.glob("tokenizer*"):
        pipe.tokenizer.backend_tokenizer.model.save(str(tokenizer))
    write_card(args, pipe, kind, parts, max_sequence_length)


def write_card(args: argparse.Namespace, pipe: Any, kind: str, parts: str, max_sequence_length: int | None) -> None:
    """Measure the model in `--output_dir` and write its card."""
    numbers = measure(args.output_dir, args.seed, max_sequence_length)
    given = [f"--{name} {value}" for name, value in vars(args).items() if name not in ("output_dir", "work_dir") and value is not None]
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    text = CARD.format(
        name=args.output_dir.name,
        kind=kind,
        pipeline=type(pipe).__name__,
        parts=parts,
        parameters=sum(p.numel() for part in modules for p in part.parameters()) / 1e6,
        command=" ".join([f"scripts/{Path(sys.argv[0]).name}", *given]),
        minutes=json.loads((args.work_dir / "seconds.json").read_text()) / 60,
        seed=args.seed,
        told="" if max_sequence_length is None else f", max_sequence_length {max_sequence_length}",
        numbers=json.dumps(numbers, indent=2),
    )
    (args.output_dir / "README.md").write_text(text)
    print(json.dumps(numbers, indent=2))
