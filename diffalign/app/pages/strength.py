"""The part of the compare page that shows one training at several strengths, from the base to beyond what was trained."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from diffalign.app.arena import SCALES, Arena
from diffalign.app.markup import image_tag
from diffalign.app.pages.shown import STYLE, sheet
from diffalign.core.runs import model_name
from diffalign.data.pictures import decode_image

ROWS = 8  # of the sheet: the prompts drawn last
FULL = 1.0


def opened(file: Path) -> Image.Image:
    """Return the picture in a file of a store."""
    return decode_image(file.read_bytes(), file.name)


def strengths_of(arena: Arena, name: str) -> dict[str, dict[float, Path]]:
    """Return the pictures that a run has drawn at every strength, by prompt and strength, all of one prompt from one seed."""
    drawn: dict[str, dict[float, Path]] = {}
    for prompt in arena.store.prompts():
        files = {scale: arena.store.pictures(prompt, model_name(name, scale)) for scale in SCALES}
        common = set.intersection(*(set(by_seed) for by_seed in files.values()))
        if common:
            seed = next(seed for seed in reversed(files[FULL]) if seed in common)
            drawn[prompt] = {scale: by_seed[seed] for scale, by_seed in files.items()}
    return drawn


def strength_sheet(arena: Arena, name: str) -> str:
    """Return the last prompts of a run at every strength, as HTML."""
    drawn = dict(list(strengths_of(arena, name).items())[-ROWS:])
    if not drawn:
        return "<p>Nothing is drawn yet.</p>"
    rows = {prompt: [opened(by_scale[scale]) for scale in SCALES] for prompt, by_scale in drawn.items()}
    return sheet([f"{scale:g}" for scale in SCALES], rows)


def strength_view(arena: Arena, run: Any) -> tuple[Any, list[Any]]:
    """Add a slider over the strength with the picture in place, and the sheet; return what refreshes them, and their components."""
    with gr.Row():
        prompt = gr.Dropdown(label="Prompt", choices=[], elem_id="strength-prompt")
        scale = gr.Slider(SCALES[0], SCALES[-1], FULL, step=SCALES[1], label="Strength: 0 is the base, 1 the training", elem_id="strength")
    view = gr.HTML(elem_id="strength-view")
    table = gr.HTML(elem_id="strength-sheet")

    def look(name: str | None, prompt: str | None, scale: float) -> str:
        by_scale = strengths_of(arena, name).get(prompt or "") if name else None
        if by_scale is None:
            return ""
        nearest = min(by_scale, key=lambda one: abs(one - scale))
        about = f"{prompt}, strength {nearest:g}"
        return f"{STYLE}<div>{image_tag(opened(by_scale[nearest]), about, kind='strength')}</div><p>{html.escape(about)}</p>"

    def refresh(name: str | None, chosen: str | None) -> list[Any]:
        prompts = list(strengths_of(arena, name)) if name else []
        return [
            gr.update(choices=prompts, value=chosen if chosen in prompts else prompts[-1] if prompts else None),
            strength_sheet(arena, name or ""),
        ]

    gr.on([scale.change, prompt.change], look, [run, prompt, scale], view, show_progress="hidden", concurrency_limit=None)
    run.change(refresh, [run, prompt], [prompt, table], show_progress="hidden", concurrency_limit=None)
    return refresh, [prompt, table]
