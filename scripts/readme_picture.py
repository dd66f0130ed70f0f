"""Draws the README's picture from a finished quickstart: held-out prompts, before and after, from the same noise.

diffalign quickstart --taste bright_background --output_dir outputs/picture
python -m scripts.readme_picture --folder outputs/picture
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import fields
from pathlib import Path

from jsonargparse import auto_cli
from PIL import Image, ImageDraw, ImageFont

from diffalign.cli.demo.images import SHOWN, Quickstart
from diffalign.cli.demo.options import QuickstartConfig

SIDE, GAP, MARGIN = 64, 10, 24  # pixels: of a picture of the model, between pictures, around them
INK, PAPER, SOFT, AFTER, EDGE = "#1f2328", "#ffffff", "#59636e", "#0b7a4b", "#d0d7de"
LABELS = ("before", "after")
LIKED = {  # what the votes of a taste were for
    "high": "shapes near the top",
    "centred": "shapes in the middle",
    "warm": "warm colours",
    "large": "large shapes",
    "bright_background": "bright backgrounds",
    "contrast": "strong contrasts",
    "bright_shape": "bright shapes",
}


def prompts_of(folder: Path) -> list[str]:
    """Return the held-out prompts of a finished quickstart, which follow from its settings."""
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    settings = {item.name: facts[item.name] for item in fields(QuickstartConfig)}
    return Quickstart(QuickstartConfig(**settings), facts["command"]).eval_prompts


def cells(strip: Image.Image) -> list[list[Image.Image]]:
    """Return the pictures of a quickstart's grid.png: the base's, and below them the aligned model's."""
    across, down = strip.width // SHOWN, strip.height // len(LABELS)
    boxes = [[(i * across, row * down) for i in range(SHOWN)] for row in range(len(LABELS))]
    return [[strip.crop((x, y, x + SIDE, y + SIDE)) for x, y in row] for row in boxes]


def compose(rows: list[list[Image.Image]], prompts: list[str], headline: str, times: int) -> Image.Image:
    """Return two labelled rows of enlarged pictures with prompts and `headline` above; a pixel becomes `times` by `times`."""
    large, small = ImageFont.load_default(27), ImageFont.load_default(19)
    side, left, top = SIDE * times, 122, 138
    width = left + len(prompts) * (side + GAP) - GAP + MARGIN
    page = Image.new("RGB", (width, top + 2 * (side + GAP) - GAP + MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((left, 22), headline, fill=INK, font=large)
    for i, prompt in enumerate(prompts):
        lines = "\n".join(textwrap.wrap(prompt, width=side // 9))
        middle = left + i * (side + GAP) + side / 2
        pen.multiline_text((middle, top - 10), lines, fill=SOFT, font=small, anchor="md", align="center", spacing=4)
    for row, (label, pictures) in enumerate(zip(LABELS, rows, strict=True)):
        y = top + row * (side + GAP)
        pen.text((left - 18, y + side / 2), label, fill=AFTER if row else INK, font=large, anchor="rm")
        for i, picture in enumerate(pictures[: len(prompts)]):
            x = left + i * (side + GAP)
            page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
            pen.rectangle((x, y, x + side - 1, y + side - 1), outline=EDGE)
    return page


def main(folder: Path = Path("outputs/picture"), destination: Path = Path("assets/demo.png"), count: int = 7, times: int = 3) -> None:
    """Write the picture, and print what its caption has to say.

    Args:
        folder: a finished `diffalign quickstart`.
        destination: where the PNG goes.
        count: how many of the held-out prompts, from the first on; none is picked by result.
        times: how many pixels wide and high a pixel of the model becomes.
    """
    strip, prompts = Image.open(folder / "grid.png").convert("RGB"), prompts_of(folder)[:count]
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    headline = f"{facts['pairs_train']} votes for {LIKED[facts['taste']]}. Same prompts, same noise, before and after:"
    page = compose(cells(strip), prompts, headline, times)
    page.quantize(colors=256, dither=Image.Dither.NONE).save(destination, optimize=True)
    low, high = facts["ci95"]
    kilobytes = destination.stat().st_size / 1000
    print(f"{destination}: {page.width} x {page.height} pixels, {kilobytes:.0f} kB; the first {len(prompts)} prompts")
    print(f"{facts['command']}, seed {facts['seed']}: {facts['pairs_train']} pairs, {facts['steps']} steps")
    print(f"win rate {facts['win_rate']:.3f} (95 % interval {low:.3f} to {high:.3f}) on {facts['prompts_heldout']} prompts")
    print(f"adherence {facts['adherence_base']:.3f} -> {facts['adherence_aligned']:.3f}; where the prompt names what the taste judges:")
    print(f"{facts['adherence_named_base']:.3f} -> {facts['adherence_named_aligned']:.3f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
