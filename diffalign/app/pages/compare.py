"""The page on which models stand side by side: looked at, voted on blind, rated."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from diffalign.app.arena import Arena, Duel
from diffalign.app.ballot import Ballot
from diffalign.app.choice import chooser
from diffalign.app.commands import export_command
from diffalign.app.download import zipped
from diffalign.app.jobs import Queue
from diffalign.app.markup import command_details, without_folders
from diffalign.app.options import AppConfig
from diffalign.app.pages.look import look_view
from diffalign.app.pages.strength import strength_view
from diffalign.app.pages.vote import vote_page
from diffalign.app.voters import AccessError, Accounts
from diffalign.core.errors import DiffalignError
from diffalign.core.runs import Run, model_name
from diffalign.evaluate.ratings import Rating

MOST_PAIRS, MOST_PROMPTS, MOST_ROWS = 1000, 200, 8
REFRESH = 3.0  # seconds
LOADING = "The models are being loaded."
VERDICTS = {"win": "clearly better", "loss": "clearly worse", "unclear": "not decided yet"}


@dataclass(frozen=True, slots=True)
class Gallery:
    """What the page does: which models there are, and who may draw with them and take them away."""

    config: AppConfig
    arena: Arena
    strengths: Arena  # pictures of one run at several strengths, which nobody votes on
    queue: Queue
    accounts: Accounts

    @property
    def base(self) -> str:
        """Return the name of the model that all trainings start from."""
        return model_name(self.config.pretrained_model_name_or_path)

    def models(self) -> dict[str, str]:
        """Return what can be drawn with, name -> path: the base, and `runs`."""
        return {self.base: self.config.pretrained_model_name_or_path, **self.runs()}

    def runs(self) -> dict[str, str]:
        """Return the runs that were named and the trainings, name -> path: results, the best of each, checkpoints."""
        folders: list[str | Path] = list(self.config.runs)
        for job in self.queue.jobs():
            folders += [job.run, job.run / "best", *sorted(job.run.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))]
        return {model_name(folder): str(folder) for folder in folders if Run.is_in(folder)}

    def usual(self) -> list[str]:
        """Return what one mostly compares: the base and the newest training, if there is one."""
        finished = [model_name(job.run) for job in self.queue.jobs() if Run.is_in(job.run)]
        return [self.base, *(finished or [model_name(run) for run in self.config.runs])[-1:]]

    def draw(self, login: str | None, names: Sequence[str], prompts: str, pairs: int) -> None:
        """Start to draw. Raises AccessError unless an owner asks for what can be drawn, ConfigError as `Arena.draw` does."""
        lines = self._lines(login, prompts, MOST_PROMPTS)
        if not 1 <= pairs <= MOST_PAIRS:
            raise AccessError(f"expected 1 to {MOST_PAIRS} pairs")
        paths = self.models()
        self.arena.draw([paths[name] for name in names if name in paths], lines, pairs)

    def draw_strengths(self, login: str | None, name: str, prompts: str) -> None:
        """Start to draw a run at every strength. Raises AccessError unless an owner asks, ConfigError as `Arena.draw` does."""
        lines = self._lines(login, prompts, MOST_ROWS)
        self.strengths.draw_strengths(self._run(name), lines)

    def download(self, login: str | None, name: str) -> Path:
        """Return a run as a zip. Raises AccessError unless an owner asks, and what `zipped` raises."""
        self._owner(login)
        return zipped(self._run(name))

    def _run(self, name: str) -> str:
        if name not in (runs := self.runs()):
            raise AccessError("choose a training")
        return runs[name]

    def _owner(self, login: str | None) -> None:
        if not self.accounts.is_owner(login):
            raise AccessError("only owners draw and download")

    def _lines(self, login: str | None, prompts: str, most: int) -> list[str]:
        self._owner(login)
        lines = list(dict.fromkeys(line.strip() for line in prompts.splitlines() if line.strip()))
        if len(lines) > most:
            raise AccessError(f"expected at most {most} prompts")
        return lines


def compare_page(gallery: Gallery) -> None:
    """Add the page's components to the `gr.Blocks` around it."""
    gr.Markdown(
        "Does the training draw what you like? Draw with it and the base at the same seeds. Vote below without knowing which is which; the "
        "table counts these votes."
    )
    with gr.Row():
        models = gr.CheckboxGroup(list(gallery.models()), value=gallery.usual(), label="Models", elem_id="compare-models")
        pairs = gr.Number(label="Pairs to have ready", value=20, minimum=1, maximum=MOST_PAIRS, precision=0, elem_id="compare-pairs")
    about = "Prompts, one on each line; if there are none, those of the embedded world"
    prompts = gr.Textbox(label=about, lines=2, max_length=20_000, elem_id="compare-prompts")
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="compare-draw")
        fresh = gr.Button("Look for new models", elem_id="compare-fresh")
    answer = gr.HTML(elem_id="compare-answer")
    status = gr.HTML(elem_id="compare-status")
    with gr.Tab("Vote blind"):
        vote_page(
            Ballot(gallery.arena.store, choose=chooser(gallery.config.choose, gallery.arena.store, of_models=True), enough=None),
            gallery.accounts,
            "arena",
        )
    with gr.Tab("Look"):
        look_view(gallery.arena)
    with gr.Tab("Strength and download"):
        run = _one_run(gallery)

    def start(names: list[str], prompts: str, pairs: int, request: gr.Request) -> list[str]:
        return [outcome(lambda: gallery.draw(request.username, names, prompts, int(pairs)), gallery.arena), state_of(gallery)]

    def look_again() -> list[Any]:
        return [gr.update(choices=list(gallery.models()), value=gallery.usual()), gr.update(choices=list(gallery.runs()))]

    draw.click(start, [models, prompts, pairs], [answer, status], concurrency_limit=None)
    gr.on(None, look_again, None, [models, run], show_progress="hidden")  # when the page is opened
    fresh.click(look_again, None, [models, run])
    gr.Timer(REFRESH).tick(lambda: state_of(gallery), None, status, show_progress="hidden", concurrency_limit=None)


def _one_run(gallery: Gallery) -> gr.Dropdown:
    """Add what concerns one training, its strengths and its files; return the component that chooses it."""
    with gr.Row():
        run = gr.Dropdown(label="Training", choices=list(gallery.runs()), value=None, elem_id="run-which")
        prompts = gr.Textbox(label=f"Prompts, one on each line, at most {MOST_ROWS}", lines=2, max_length=2_000, elem_id="strength-prompts")
    with gr.Row():
        draw = gr.Button("Draw at every strength", elem_id="strength-draw")
        download = gr.Button("Make a zip for diffusers and ComfyUI", elem_id="run-download")
    answer = gr.HTML(elem_id="run-answer")
    file = gr.File(label="Unzip it; the folder is what load_lora_weights takes", visible=False, elem_id="run-file")
    refresh, shown = strength_view(gallery.strengths, run)

    def start(name: str | None, prompts: str, request: gr.Request) -> str:
        return outcome(lambda: gallery.draw_strengths(request.username, name or "", prompts), gallery.strengths)

    def pack(name: str | None, request: gr.Request) -> list[Any]:
        made: list[Path] = []
        refused = refusal(lambda: made.append(gallery.download(request.username, name or "")))
        command = command_details(export_command(gallery.runs()[name or ""], f"{name}-lora")) if made else ""
        return [refused or command, gr.update(value=str(made[0]) if made else None, visible=bool(made))]

    def follow(name: str | None, prompt: str | None, drawing: float) -> list[Any]:
        """Look at the drawing while it goes on, and once more after its end."""
        strengths = gallery.strengths.drawing
        if not strengths.busy and not drawing:
            return [gr.skip(), 0.0, *(gr.skip() for _ in shown)]
        state = progress_of(gallery.strengths) or "<p>Drawn.</p>"
        return [state, time.time() if strengths.busy else 0.0, *refresh(name, prompt)]

    drawing = gr.State(0.0)
    draw.click(start, [run, prompts], answer, concurrency_limit=None).then(lambda: time.time(), None, drawing)
    download.click(pack, run, [answer, file], concurrency_limit=1)
    gr.Timer(REFRESH).tick(follow, [run, shown[0], drawing], [answer, drawing, *shown], show_progress="hidden", concurrency_limit=None)
    return run


def outcome(call: Any, arena: Arena) -> str:
    """Return what to show after `call` has started a drawing: why it was refused, or the command that does the same."""
    return refusal(call) or command_details(arena.drawing.command)


def refusal(call: Any) -> str:
    """Return why `call` was refused, as HTML; nothing if it was not."""
    try:
        call()
    except (DiffalignError, AccessError) as error:
        return f"<p>{html.escape(without_folders(str(error)))}</p>"
    return ""


def progress_of(arena: Arena) -> str:
    """Return how far a drawing is, or why it failed, as HTML; nothing of one that has ended well."""
    drawing = arena.drawing
    if drawing.busy:
        return f"<p>Drawing. {html.escape(drawing.last_line or LOADING)}</p>"
    if trouble := drawing.trouble:
        return f"<p>The drawing failed: {html.escape(without_folders(trouble))} Draw again to go on.</p>"
    return ""


def state_of(gallery: Gallery) -> str:
    """Return what the arena says of itself, as HTML: whether it draws, and the win rates and ratings by its votes."""
    arena, lines = gallery.arena, [progress_of(gallery.arena)]
    if arena.drawing.busy:
        lines.append(f"<p>{arena.store.unseen()} pairs wait for a vote.</p>")
    try:
        return "".join([*lines, duel_table(arena.duels(gallery.base)), rating_table(arena.ratings())])
    except DiffalignError as error:  # models that no vote connects
        return "".join(lines) + f"<p>{html.escape(str(error))}</p>"


def duel_table(duels: Sequence[Duel]) -> str:
    """Return win rates against the base as an HTML table, with 95 % intervals."""
    if not duels:
        return ""
    rows = (
        f"<tr><td>{html.escape(one.model)}</td><td>{one.rate:.2f} ({_end(one.low)} to {_end(one.high)})</td><td>{one.prompts}</td>"
        f"<td>{VERDICTS[one.verdict]}</td></tr>"
        for one in duels
    )
    head = f"<tr><th>Model</th><th>Win rate against {html.escape(duels[0].against)} (95 %)</th><th>Prompts</th><th></th></tr>"
    return f'<div style="overflow-x: auto"><table>{head}{"".join(rows)}</table></div>'


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
    return f'<div style="overflow-x: auto"><table>{head}{"".join(rows)}</table></div>'


def _end(share: float) -> str:
    return "?" if math.isnan(share) else f"{share:.2f}"


def _chance(rating: float) -> float:
    return 1.0 / (1.0 + math.exp(-rating))
