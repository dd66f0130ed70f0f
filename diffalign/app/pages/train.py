"""The page on which votes become a model: what to train, the queue, and what each training says of itself."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from diffalign.app.jobs import EVALUATIONS, LOG, TRAIN_LOG, Job
from diffalign.app.markup import without_folders
from diffalign.app.pages.shown import sheet
from diffalign.app.voters import AccessError
from diffalign.app.workshop import EVERYONE, METHODS, MOST_STEPS, Workshop
from diffalign.core.errors import DiffalignError
from diffalign.data.store import VoteStore
from diffalign.train.requests import SAMPLE, SAVE

MINE = "my own"
# Fills the last of an event's inputs with the secret by which this browser votes where nobody logs in.
WITH_VOTER = '(...inputs) => [...inputs.slice(0, -1), localStorage.getItem("diffalign-voter") ?? ""]'
# What is drawn of the log, and its title.
CURVES = {
    "loss": "Loss",
    "implicit_acc": "Pairs ordered as voted",
    "log_ratio/chosen": "Preferred: log-ratio to the start",
    "log_ratio/rejected": "Dispreferred: log-ratio to the start",
}
# What one can do to a training: the button's label, what the page answers, and in which states it can be done.
DEEDS = {
    "stop": ("Stop at a checkpoint", "It stops after the step in hand.", ("running", "waiting")),
    SAVE: ("Save now", "A checkpoint is written after the step in hand.", ("running",)),
    SAMPLE: ("Draw now", "Pictures are drawn after the step in hand.", ("running",)),
    "resume": ("Go on", "In the queue.", ("stopped", "failed")),
    "delete": ("Delete", "Deleted.", ("waiting", "stopped", "failed", "done")),
}
REFRESH = 2.0  # seconds
POINTS, COLUMNS = 400, 12  # of a curve, of the validation pictures; of longer ones some are left out
ENDED = ("stopped", "failed")


def train_page(workshop: Workshop, tab: gr.Tab) -> None:
    """Add the page's components to the `gr.Blocks` around it; `tab` is what they lie in."""
    gr.Markdown("Choose whose votes to learn from, and how. Training runs by itself: close the page or the server, and it goes on.")
    usual = workshop.usual
    recipe = workshop.preset(usual)
    with gr.Row():
        voter = gr.Dropdown(label="Votes of", choices=[EVERYONE, MINE], value=EVERYONE, elem_id="train-voter")
        name = gr.Textbox(label="Name of the training", value="mine", max_length=64, elem_id="train-name")
        steps = gr.Number(label="Steps", value=recipe.steps, minimum=1, maximum=MOST_STEPS, precision=0, elem_id="train-steps")
    method = gr.Radio([(about, key) for key, about in METHODS.items()], value=usual, label="Method", elem_id="train-method")
    strength = gr.Slider(1, 5, 3, step=1, label="Strength", info=_strength(workshop, usual, 3), elem_id="train-strength")
    memory = gr.HTML("<p>How much memory it takes is being worked out …</p>", elem_id="train-memory")
    start, secret = gr.Button("Start training", variant="primary", elem_id="train-start"), gr.Textbox(visible=False)
    answer = gr.Markdown(elem_id="train-answer")
    watched = _watch(workshop, answer)

    def begin(voter: str, name: str, method: str, strength: int, steps: int, secret: str, request: gr.Request) -> list[Any]:
        def start() -> None:
            chosen = workshop.accounts.voter(request.username, secret) if voter == MINE else voter
            workshop.start(request.username, name, chosen, method, int(strength), int(steps))

        return [_outcome(start, "In the queue."), *_shown(workshop, request.username, name.strip(), None)]

    def estimate(method: str, request: gr.Request) -> str:
        return _memory(workshop, request.username, method)

    def voters(request: gr.Request) -> Any:
        return gr.update(choices=_voters(workshop.store) if workshop.accounts.is_owner(request.username) else [EVERYONE, MINE])

    choices = [voter, name, method, strength, steps, secret]
    start.click(begin, choices, [answer, *watched], concurrency_limit=None, js=WITH_VOTER)
    voter.focus(voters, None, voter, show_progress="hidden")
    strength.change(lambda method, strength: gr.update(info=_strength(workshop, method, int(strength))), [method, strength], strength)
    method.change(lambda method: workshop.preset(method).steps, method, steps).then(
        lambda method, strength: gr.update(info=_strength(workshop, method, int(strength))), [method, strength], strength
    )
    gr.on([tab.select, method.change], estimate, method, memory, show_progress="hidden")  # which would lie over the button below


def _watch(workshop: Workshop, answer: gr.Markdown) -> list[Any]:
    """Add the part of the page that shows a training and acts on it; return the components that `_shown` is for."""
    which = gr.Dropdown(label="Training", choices=[], interactive=True, elem_id="train-which")
    status = gr.HTML(elem_id="train-status")
    with gr.Row():
        buttons = {deed: gr.Button(label, elem_id=f"train-{deed}", visible=False) for deed, (label, _, _) in DEEDS.items()}
        typed_name = gr.Textbox(label="To delete it, type its name", elem_id="train-sure", visible=False)
    curves = []
    for names in (list(CURVES)[:2], list(CURVES)[2:]):
        with gr.Row():
            curves += [_curve(name) for name in names]
    pictures = gr.HTML(elem_id="train-pictures")
    state = gr.State("")  # of what is shown, by its files: while they stand still nothing is sent
    watched = [state, which, status, pictures, *curves, *buttons.values(), typed_name]

    def refresh(selected: str | None, state: str, request: gr.Request) -> list[Any]:
        return _shown(workshop, request.username, selected, state)

    def acting(deed: str) -> Callable[..., list[Any]]:
        def act(selected: str | None, typed_name: str, request: gr.Request) -> list[Any]:
            outcome = _outcome(lambda: workshop.act(request.username, deed, selected or "", typed_name), DEEDS[deed][1])
            return [outcome, *_shown(workshop, request.username, selected, None)]

        return act

    for deed, button in buttons.items():
        button.click(acting(deed), [which, typed_name], [answer, *watched], concurrency_limit=None)
    for event in (gr.Timer(REFRESH).tick, which.change):
        event(refresh, [which, state], watched, show_progress="hidden", concurrency_limit=None)
    return watched


def _shown(workshop: Workshop, login: str | None, selected: str | None, state: str | None) -> list[Any]:
    """Return what `_watch` shows of the trainings and the selected or last one, to owners alone; nothing new if `state` is as it was."""
    jobs = workshop.queue.jobs() if workshop.accounts.is_owner(login) else []
    names = [job.name for job in jobs]
    selected = selected if selected in names else names[-1] if names else None
    job = next((job for job in jobs if job.name == selected), None)
    now = _state(names, job)
    if now == state:
        return [gr.skip()] * (4 + len(CURVES) + len(DEEDS) + 1)
    buttons = [gr.update(visible=job is not None and job.state in states) for _, _, states in DEEDS.values()]
    deletable = gr.update(visible=job is not None and job.state in DEEDS["delete"][2])
    return [now, gr.update(choices=names, value=selected), _status(job), _pictures(job), *_plots(job), *buttons, deletable]


def _curve(name: str) -> gr.LinePlot:
    title, place = CURVES[name], f"train-curve-{name.replace('/', '-')}"
    return gr.LinePlot(None, x="step", y=name, title=title, y_title=" ", height=200, visible=False, elem_id=place)


def _state(names: Sequence[str], job: Job | None) -> str:
    """Return a text that changes when there is something new to show."""
    if job is None:
        return "none"
    files = (job.run / TRAIN_LOG, job.run / EVALUATIONS, job.folder / LOG, *job.pictures().values())
    sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
    return repr((names, job, job.state, sizes))


def _memory(workshop: Workshop, login: str | None, method: str) -> str:
    """Return what a training takes of the machine's memory, as HTML, the sentence on whether it fits first."""
    try:
        about = workshop.memory(login, method)
    except (DiffalignError, AccessError) as error:
        return f"<p>{html.escape(without_folders(str(error)))}</p>"
    *table, fits = about.splitlines()
    return (
        f"<p><b>Memory.</b> {html.escape(fits)}</p><details><summary>What it is made of</summary><pre>"
        + html.escape(without_folders("\n".join(table)))
        + "</pre></details>"
    )


def _strength(workshop: Workshop, method: str, strength: int) -> str:
    return f"1 stays close to the model, 5 moves far. It is the method's beta: {workshop.beta(method, strength):g}"


def _outcome(call: Callable[[], object], success: str) -> str:
    """Return what to say after a call: `success`, or why it was refused, with nothing in it that a page would take as HTML."""
    try:
        call()
    except (DiffalignError, AccessError) as error:
        return html.escape(without_folders(str(error)))
    return success


def _voters(store: VoteStore) -> list[tuple[str, str]]:
    names = store.users()
    guests = ((name if not name.startswith("guest-") else f"guest {name[6:12]}", name) for name in names)
    return [(EVERYONE, EVERYONE), (MINE, MINE), *guests]


def _status(job: Job | None) -> str:
    """Return what a training says of itself, as HTML."""
    if job is None:
        return "<p>No training yet.</p>"
    log = [line for line in job.log() if "loss" in line]
    about = {
        "waiting": "waits for the one before it",
        "running": f"runs. {job.progress()}",
        "done": "is done: look at it on the page Compare",
        "stopped": "was stopped; it goes on at its last checkpoint",
        "failed": f"{job.end()}. What it wrote last stands below. “Go on” takes it up at its last checkpoint",
    }[job.state]
    steps = int(job.flag("max_train_steps")[0])
    step = log[-1]["step"] if log else 0
    parts = [
        f"<p><b>{html.escape(job.name)}</b> {html.escape(about)}. Step {step} of {steps}.</p>",
        f'<progress max="{steps}" value="{step}"></progress>',
    ]
    parts += [f'<p style="color: var(--error-text-color)">Alarm, {html.escape(alarm)}</p>' for alarm in job.alarms()[-1:]]
    if job.state in ENDED:
        parts.append(f"<pre>{html.escape(_without_paths(job.words()[-800:], job.folder))}</pre>")
    command = html.escape(_without_paths(job.command, job.folder))
    parts.append(f"<details><summary>The same on the command line</summary><code>{command}</code></details>")
    return "".join(parts)


def _without_paths(text: str, folder: Path) -> str:
    """Return a text in which the server's folders are not named in full."""
    return without_folders(text.replace(str(folder.resolve().parent), "…").replace(str(folder.parent), "…"))


def _pictures(job: Job | None) -> str:
    """Return the validation pictures as HTML: a row for each prompt, a column for each step, the newest last."""
    prompts = job.flag("validation_prompts") if job else []
    if job is None or not prompts or not job.pictures():
        return ""
    steps = list(job.pictures().items())[-COLUMNS:]
    columns = []
    for _, file in steps:
        with Image.open(file) as drawn:  # one row of equal pictures, with a border of two pixels on the right and below
            width = drawn.width // len(prompts)
            columns.append([drawn.crop((n * width, 0, n * width + width - 2, drawn.height - 2)) for n in range(len(prompts))])
    rows = {prompt: [column[n] for column in columns] for n, prompt in enumerate(prompts)}
    return sheet([f"step {step}" for step, _ in steps], rows)


def _plots(job: Job | None) -> Sequence[Any]:
    lines = job.log() if job else []
    updates = []
    for curve in CURVES:
        points = [(line["step"], line[curve]) for line in lines if isinstance(line.get(curve), int | float)]
        shown = points[:: -(-len(points) // POINTS) or 1]
        updates.append(gr.update(value=pd.DataFrame(shown, columns=["step", curve]), visible=len(points) > 1))
    return updates
