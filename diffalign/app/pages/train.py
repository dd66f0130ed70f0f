"""The page on which votes become a model: what to train, the queue, and what each training says of itself."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from diffalign.app.jobs import Job, Queue
from diffalign.app.options import AppConfig
from diffalign.app.voters import AccessError, Accounts
from diffalign.core.errors import DiffalignError
from diffalign.data.records import Record
from diffalign.data.store import VoteStore

EVERYONE = "everyone"
# What somebody who never read a paper has to know of a method to choose it.
METHODS = {
    "diffusion_dpo": "Diffusion-DPO: the usual choice. It learns from each pair, and stays near the model it started from.",
    "mapo": "MaPO: needs no second model, so half the memory. It may move further from the start.",
    "smpo": "SmPO: for votes that disagree; it smooths them, at twice the cost of a step.",
    "inpo": "InPO: looks at the noise that the picture came from; steadier with few votes, slower.",
}
GENTLE_TO_STRONG = {1: 4.0, 2: 2.0, 3: 1.0, 4: 0.5, 5: 0.25}  # beta, as a multiple of the recipe's: a smaller one moves further
# What is drawn of the log, and its title.
CURVES = {
    "loss": "Loss",
    "implicit_acc": "Pairs ordered as voted",
    "log_ratio/chosen": "Preferred: log-ratio to the start",
    "log_ratio/rejected": "Dispreferred: log-ratio to the start",
}
# What one can do to a training: the button's label, and what the page answers.
DEEDS = {
    "stop": ("Stop at a checkpoint", "It stops after the step in hand."),
    "resume": ("Go on", "In the queue."),
    "delete": ("Delete", "Deleted."),
}
REFRESH = 2.0  # seconds
LEAST_VOTES = 4


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the page does: checks who asks, and turns choices into flags of `diffalign train`."""

    config: AppConfig
    store: VoteStore
    queue: Queue
    accounts: Accounts
    beta: float  # the recipe's

    def start(self, login: str | None, name: str, voter: str, method: str, strength: int, steps: int) -> Job:
        """Put a training on the votes of `voter` into the queue.

        Raises AccessError unless an owner asks, ConfigError for choices that cannot be meant or for too few votes.
        """
        self.owner(login)
        if method not in METHODS or strength not in GENTLE_TO_STRONG or not 1 <= steps <= 100_000:
            raise AccessError("choose a method, a strength from 1 to 5, and at least one step")
        records = list(self._records(voter))
        if sum(record.prob != 0.5 for record in records) < LEAST_VOTES:
            raise AccessError(f"{len(records)} votes, ties among them; a training needs at least {LEAST_VOTES} that prefer one picture")
        flags = ["--config", self.config.config, "--pretrained_model_name_or_path", self.config.pretrained_model_name_or_path]
        flags += ["--method", method, "--max_train_steps", str(steps), "--checkpointing_steps", str(max(1, steps // 10))]
        if method == "diffusion_dpo":
            flags += ["--beta", f"{self.beta * GENTLE_TO_STRONG[strength]:g}"]
        return self.queue.add(name.strip(), records, flags)

    def owner(self, login: str | None) -> None:
        """Raise AccessError unless somebody is an owner."""
        if not self.accounts.is_owner(login):
            raise AccessError("only owners train, stop and delete")

    def act(self, login: str | None, deed: str, name: str, typed_name: str) -> None:
        """Do a deed of `DEEDS` to a training. Raises AccessError unless an owner asks, and for a name that was not typed to delete."""
        self.owner(login)
        if deed == "delete" and typed_name != name:
            raise AccessError("type the name of the training to delete it")
        {"stop": self.queue.stop, "resume": self.queue.resume, "delete": self.queue.delete}[deed](name)

    def _records(self, voter: str) -> Iterator[Record]:
        for record in self.store.records():
            if voter in (EVERYONE, record.user) and record.prob is not None:
                yield record


def train_page(workshop: Workshop) -> None:
    """Add the page's components to the `gr.Blocks` around it."""
    gr.Markdown("Choose whose votes to learn from, and how. Training runs by itself: close the page or the server, and it goes on.")
    with gr.Row():
        voter = gr.Dropdown(label="Votes of", choices=[EVERYONE], value=EVERYONE, elem_id="train-voter")
        name = gr.Textbox(label="Name of the training", value="mine", max_length=64, elem_id="train-name")
        steps = gr.Number(label="Steps", value=200, minimum=1, maximum=100_000, precision=0, elem_id="train-steps")
    method = gr.Radio([(about, key) for key, about in METHODS.items()], value="diffusion_dpo", label="Method", elem_id="train-method")
    strength = gr.Slider(1, 5, 3, step=1, label="Strength", info="1 stays close to the model, 5 moves far (Diffusion-DPO's beta)")
    start = gr.Button("Start training", variant="primary", elem_id="train-start")
    answer = gr.Markdown(elem_id="train-answer")
    watched = _watch(workshop, answer)

    def begin(voter: str, name: str, method: str, strength: int, steps: int, request: gr.Request) -> list[Any]:
        outcome = _outcome(lambda: workshop.start(request.username, name, voter, method, int(strength), int(steps)), "In the queue.")
        return [outcome, *_shown(workshop, request.username, name.strip())]

    def voters(request: gr.Request) -> Any:
        return gr.update(choices=_voters(workshop.store) if workshop.accounts.is_owner(request.username) else [EVERYONE])

    start.click(begin, [voter, name, method, strength, steps], [answer, *watched], concurrency_limit=None)
    voter.focus(voters, None, voter, show_progress="hidden")


def _watch(workshop: Workshop, answer: gr.Markdown) -> list[Any]:
    """Add the part of the page that shows a training and acts on it; return the components that `_shown` is for."""
    which = gr.Dropdown(label="Training", choices=[], interactive=True, elem_id="train-which")
    status = gr.HTML(elem_id="train-status")
    curves = []
    for names in (list(CURVES)[:2], list(CURVES)[2:]):
        with gr.Row():
            curves += [gr.LinePlot(None, x="step", y=name, title=CURVES[name], y_title=" ", height=200, visible=False) for name in names]
    with gr.Row():
        buttons = {deed: gr.Button(label, elem_id=f"train-{deed}") for deed, (label, _) in DEEDS.items()}
        typed_name = gr.Textbox(label="To delete it, type its name", elem_id="train-sure")
    watched = [which, status, *curves]

    def refresh(selected: str | None, request: gr.Request) -> list[Any]:
        return _shown(workshop, request.username, selected)

    def acting(deed: str) -> Callable[..., list[Any]]:
        def act(selected: str | None, typed_name: str, request: gr.Request) -> list[Any]:
            outcome = _outcome(lambda: workshop.act(request.username, deed, selected or "", typed_name), DEEDS[deed][1])
            return [outcome, *_shown(workshop, request.username, selected)]

        return act

    for deed, button in buttons.items():
        button.click(acting(deed), [which, typed_name], [answer, *watched], concurrency_limit=None)
    for event in (gr.Timer(REFRESH).tick, which.change):
        event(refresh, which, watched, show_progress="hidden", concurrency_limit=None)
    return watched


def _shown(workshop: Workshop, login: str | None, selected: str | None) -> list[Any]:
    """Return the trainings to choose from, what the selected or the last one says of itself, and its curves; to owners alone."""
    jobs = workshop.queue.jobs() if workshop.accounts.is_owner(login) else []
    names = [job.name for job in jobs]
    selected = selected if selected in names else names[-1] if names else None
    job = next((job for job in jobs if job.name == selected), None)
    return [gr.update(choices=names, value=selected), _status(job), *_plots(job)]


def _outcome(call: Callable[[], object], success: str) -> str:
    """Return what to say after a call: `success`, or why it was refused, with nothing in it that a page would take as HTML."""
    try:
        call()
    except (DiffalignError, AccessError) as error:
        return html.escape(str(error))
    return success


def _voters(store: VoteStore) -> list[tuple[str, str]]:
    names = store.users()
    return [(EVERYONE, EVERYONE), *((name if not name.startswith("guest-") else f"guest {name[6:12]}", name) for name in names)]


def _status(job: Job | None) -> str:
    """Return what a training says of itself, as HTML."""
    if job is None:
        return "<p>No training yet.</p>"
    log = [line for line in job.log() if "loss" in line]
    about = {
        "waiting": "waits for the one before it",
        "running": "runs",
        "done": "is done: look at it on the page Compare",
        "stopped": "was stopped; it goes on at its last checkpoint",
        "failed": "ended without a result; what it wrote last stands below. It can go on at its last checkpoint",
    }[job.state]
    steps = int(job.flags[job.flags.index("--max_train_steps") + 1])
    step = log[-1]["step"] if log else 0
    parts = [
        f"<p><b>{html.escape(job.name)}</b> {about}. Step {step} of {steps}.</p>",
        f'<progress max="{steps}" value="{step}"></progress>',
    ]
    parts += [f'<p style="color: var(--error-text-color)">Alarm, {html.escape(alarm)}</p>' for alarm in job.alarms()[-1:]]
    if job.state in ("failed", "stopped"):
        parts.append(f"<pre>{html.escape(_without_paths(job.words()[-800:], job.folder))}</pre>")
    command = html.escape(_without_paths(job.command, job.folder))
    parts.append(f"<details><summary>The same on the command line</summary><code>{command}</code></details>")
    return "".join(parts)


def _without_paths(text: str, folder: Path) -> str:
    """Return a text in which the server's folders are not named in full."""
    return text.replace(str(folder.resolve().parent), "…").replace(str(folder.parent), "…").replace(str(Path.home()), "~")


def _plots(job: Job | None) -> Sequence[Any]:
    lines = job.log() if job else []
    updates = []
    for curve in CURVES:
        points = [(line["step"], line[curve]) for line in lines if isinstance(line.get(curve), int | float)]
        frame = pd.DataFrame(points, columns=["step", curve])
        updates.append(gr.update(value=frame, visible=len(points) > 1))
    return updates
