"""The part of the compare page that shows two models' pictures of one prompt and seed: in one place in turn, and under a line to drag."""

from __future__ import annotations

from typing import Any

import gradio as gr

from diffalign.app.arena import Arena
from diffalign.app.pages.shown import flip

NARROW = 320  # pixels; a screen with less than twice as many shows one above the other


def look_view(arena: Arena) -> None:
    """Add the choice of a prompt and two models, and their pictures."""
    with gr.Row():
        prompt = gr.Dropdown(label="Prompt", choices=[], elem_id="compare-prompt")
        left, right = (gr.Dropdown(label=f"On the {side}", choices=[], elem_id=f"compare-{side}") for side in ("left", "right"))
    with gr.Row():
        with gr.Column(min_width=NARROW):
            flipped = gr.HTML(elem_id="compare-flip")
        with gr.Column(min_width=NARROW):
            slider = gr.ImageSlider(label="Drag the line", type="pil", height=512, interactive=False, elem_id="compare-slider")

    def choices(prompt: str | None, left: str | None, right: str | None) -> list[Any]:
        drawn, prompts = arena.store.models(), arena.store.prompts()
        ends = (drawn[0], drawn[-1]) if drawn else (None, None)
        sides = [
            gr.update(choices=drawn, value=chosen if chosen in drawn else end) for chosen, end in zip((left, right), ends, strict=True)
        ]
        return [gr.update(choices=prompts, value=prompt if prompt in prompts else next(iter(prompts), None)), *sides]

    def look(prompt: str | None, left: str | None, right: str | None) -> list[Any]:
        pair = arena.pictures(prompt, left, right) if prompt and left and right else None
        if pair is None or left is None or right is None:
            return ["<p>These two have not drawn this prompt yet.</p>" if prompt else "", None]
        return [flip((left, pair[0]), (right, pair[1])), pair]

    prompt.focus(choices, [prompt, left, right], [prompt, left, right], show_progress="hidden")
    gr.on([one.change for one in (prompt, left, right)], look, [prompt, left, right], [flipped, slider], show_progress="hidden")
