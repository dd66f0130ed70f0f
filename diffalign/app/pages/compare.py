"""The page on which models stand side by side: looked at, voted on blind, rated."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from diffalign.app.arena import Arena
from diffalign.app.ballot import Ballot
from diffalign.app.jobs import Queue
from diffalign.app.options import AppConfig
from diffalign.app.pages.vote import vote_page
from diffalign.app.voters import AccessError, Accounts
from diffalign.core.errors import DiffalignError
from diffalign.evaluate.ratings import Rating

MOST_PAIRS, MOST_PROMPTS = 1000, 200
REFRESH = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class Gallery:
    """What the page does: which models there are, and who may draw with them."""

    config: AppConfig
    arena: Arena
    queue: Queue
    accounts: Accounts

    def models(self) -> dict[str, str]:
        """Return what can be drawn with, name -> path: the base, the runs that were named, finished trainings."""
        paths = [self.config.pretrained_model_name_or_path, *self.config.runs]
        for job in self.queue.jobs():
            if job.state == "done":
                paths.append(str(job.run))
        return {Path(path).name if Path(path).exists() else path: path for path in paths}

    def draw(self, login: str | None, names: Sequence[str], prompts: str, pairs: int) -> None:
        """Start to draw. Raises AccessError unless an owner asks for what can be drawn, ConfigError as `Arena.draw` does."""
        if not self.accounts.is_owner(login):
            raise AccessError("only owners draw")
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not 1 <= pairs <= MOST_PAIRS or len(lines) > MOST_PROMPTS:
            raise AccessError(f"expected 1 to {MOST_PAIRS} pairs, and at most {MOST_PROMPTS} prompts")
        paths = self.models()
        self.arena.draw([paths[name] for name in names if name in paths], lines, pairs)


def compare_page(gallery: Gallery) -> None:
    """Add the page's components to the `gr.Blocks` around it."""
    gr.Markdown("Draw with two models or more at the same seeds. Vote below without knowing which is which; the table counts these votes.")
    with gr.Row():
        models = gr.CheckboxGroup(list(gallery.models()), label="Models", elem_id="compare-models")
        pairs = gr.Number(label="Pairs to have ready", value=20, minimum=1, maximum=MOST_PAIRS, precision=0)
    prompts = gr.Textbox(label="Prompts, one on each line; if there are none, those of the embedded world", lines=2, max_length=20_000)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="compare-draw")
        fresh = gr.Button("Look for new models", elem_id="compare-fresh")
    status = gr.HTML(elem_id="compare-status")
    with gr.Tab("Vote blind"):
        vote_page(Ballot(gallery.arena.store, enough=None), gallery.accounts, "arena")
    with gr.Tab("Look"):
        _look(gallery.arena)

    def start(names: list[str], prompts: str, pairs: int, request: gr.Request) -> str:
        try:
            gallery.draw(request.username, names, prompts, int(pairs))
        except (DiffalignError, AccessError) as error:
            return f"<p>{html.escape(str(error))}</p>"
        return state_of(gallery)

    draw.click(start, [models, prompts, pairs], status, concurrency_limit=None)
    fresh.click(lambda: gr.update(choices=list(gallery.models())), None, models)
    gr.Timer(REFRESH).tick(lambda: state_of(gallery), None, status, show_progress="hidden", concurrency_limit=None)


def _look(arena: Arena) -> None:
    """Add what shows two models' pictures of one prompt and seed, one over the other."""
    with gr.Row():
        prompt = gr.Dropdown(label="Prompt", choices=[], elem_id="compare-prompt")
        left, right = (gr.Dropdown(label=f"On the {side}", choices=[], elem_id=f"compare-{side}") for side in ("left", "right"))
    slider = gr.ImageSlider(label="Drag the line", type="pil", height=512, interactive=False, elem_id="compare-slider")

    def choices() -> list[Any]:
        drawn = arena.store.models()
        first, last = (drawn[0], drawn[-1]) if drawn else (None, None)
        prompts = arena.store.prompts()
        sides = [gr.update(choices=drawn, value=value) for value in (first, last)]
        return [gr.update(choices=prompts, value=prompts[0] if prompts else None), *sides]

    def look(prompt: str | None, left: str | None, right: str | None) -> tuple[Image.Image, Image.Image] | None:
        return arena.pictures(prompt, left, right) if prompt and left and right else None

    prompt.focus(choices, None, [prompt, left, right], show_progress="hidden")
    for one in (prompt, left, right):
        one.change(look, [prompt, left, right], slider, show_progress="hidden")


def state_of(gallery: Gallery) -> str:
    """Return what the arena says of itself, as HTML: whether it draws, and the ratings by its votes."""
    arena, lines = gallery.arena, []
    if arena.busy:
        lines.append(f"<p>Drawing; {arena.store.unseen()} pairs wait for a vote.</p>")
    if trouble := arena.trouble:
        lines.append(f"<p>The drawing failed: {html.escape(trouble.replace(str(Path.home()), '~'))}</p>")
    try:
        return "".join(lines) + rating_table(arena.ratings())
    except DiffalignError as error:  # models that no vote connects
        return "".join(lines) + f"<p>{html.escape(str(error))}</p>"


def rating_table(ratings: Sequence[Rating]) -> str:
    """Return ratings as an HTML table, with the chance to win against an average one and its 95 % interval."""
    if not ratings:
        return "<p>No votes yet.</p>"
    rows = [
        f"<tr><td>{html.escape(one.model)}</td><td>{_chance(one.rating):.2f} ({_chance(one.low):.2f} to {_chance(one.high):.2f})</td>"
        f"<td>{one.wins:g}</td><td>{one.losses:g}</td><td>{one.ties}</td></tr>"
        for one in ratings
    ]
    head = "<tr><th>Model</th><th>Chance against the average (95 %)</th><th>Won</th><th>Lost</th><th>Tied</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _chance(rating: float) -> float:
    return 1.0 / (1.0 + math.exp(-rating))
