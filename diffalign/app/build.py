"""The app as a `gr.Blocks`, and what runs beside it: the process that draws ahead, and the queue of trainings."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from diffalign.app.arena import Arena
from diffalign.app.background import Background
from diffalign.app.ballot import Ballot
from diffalign.app.choice import chooser
from diffalign.app.commands import draw_command
from diffalign.app.jobs import Queue
from diffalign.app.ledger import Ledger
from diffalign.app.limits import RequestLimits
from diffalign.app.options import AppConfig
from diffalign.app.pages.compare import Gallery, compare_page
from diffalign.app.pages.data import data_page
from diffalign.app.pages.rewrite import Desk, rewrite_page
from diffalign.app.pages.train import train_page
from diffalign.app.pages.vote import vote_page
from diffalign.app.pages.yours import yours_page
from diffalign.app.studio import PROMPTS, Studio, shipped
from diffalign.app.voters import Accounts
from diffalign.app.workshop import Workshop
from diffalign.core.errors import ConfigError
from diffalign.data.prompts import prompts_to_draw
from diffalign.data.questions import RANKED
from diffalign.data.store import VoteStore
from diffalign.infer.options import DrawVotesConfig

logger = logging.getLogger(__name__)
JOBS, ARENA, STRENGTHS, CHOICES = "trainings", "arena.db", "strengths.db", "choices.db"
DRAW_AGAIN = 30  # seconds after which a process that draws and has died is started again
BYTES = "1mb"  # the largest upload
CHOSEN_FROM = 8  # prompts whose pictures the page Yours asks about
# Small print that one can read, too; Gradio's own is too pale.
READABLE = {
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
}
SESSIONS = 100  # pages whose state the server keeps; it does not notice that one was left, and forgets the oldest
LOOK = 0.05  # seconds between two looks of Gradio at its queue of events


def build(config: AppConfig) -> gr.Blocks:
    """Return the app's pages, which `gr.mount_gradio_app` mounts into a server of one's own; `at_work` runs what they need beside them.

    Raises ConfigError or TableError for a recipe, accounts or a store that cannot be read.

    Example:
        >>> config = AppConfig(dataset_name="votes.db")  # doctest: +SKIP
        >>> with at_work(config):  # doctest: +SKIP
        ...     build(config).launch()
    """
    accounts = _accounts(config)
    store = VoteStore(config.dataset_name)
    folder = Path(config.output_dir)
    arena, strengths = (Arena(VoteStore(folder / name), Background(folder / f"{name}.log")) for name in (ARENA, STRENGTHS))
    workshop = Workshop(config, store, Queue(folder / JOBS), accounts)
    desk, studio = Desk.of(config, folder, accounts), _studio(config)
    stores = {"votes": store, "votes on Compare": arena.store}
    tables = [folder / JOBS, folder / "data", *map(Path, config.tables)]
    ledger = Ledger(stores, tables, folder / "data", accounts, Background(folder / "data" / "audit.log"))
    with gr.Blocks(title="diffalign", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        with gr.Tab("Vote"):
            vote_page(_ballot(config, store), accounts, "votes")
        with gr.Tab("Train", visible=not accounts.by_name) as train:
            train_page(workshop, train)
        with gr.Tab("Compare"):
            compare_page(Gallery(config, arena, strengths, workshop.queue, accounts))
        with gr.Tab("Yours"):
            yours_page(studio, accounts)
        with gr.Tab("Rewrite", visible=not accounts.by_name) as rewrite:
            rewrite_page(desk)
        with gr.Tab("Data", visible=not accounts.by_name) as data:
            data_page(ledger, data)
        _hide_from_voters(blocks, accounts, [train, rewrite, data])
    blocks.state_session_capacity = SESSIONS
    # Gradio looks for work a thousand times a second, also while nobody is there, which takes 4 % of a core.
    blocks._queue.sleep_when_free = blocks._queue.progress_update_sleep_when_free = LOOK
    return blocks


def _hide_from_voters(blocks: gr.Blocks, accounts: Accounts, pages: Sequence[gr.Tab]) -> None:
    """Show pages to owners alone; what they call refuses voters all the same."""

    def visible(request: gr.Request) -> list[Any]:
        return [gr.update(visible=accounts.is_owner(request.username)) for _ in pages]

    if accounts.by_name:
        blocks.load(visible, None, list(pages))


def serve(config: AppConfig) -> None:
    """Serve the app until it is interrupted. Raises ConfigError for settings that cannot be meant, before anything is started."""
    if config.share and config.auth is None:
        raise ConfigError("`share` opens the app to everybody who has the address; give --auth FILE with those who may log in")
    accounts = _accounts(config)
    if config.share:
        logger.warning("--share: the page is reached through Gradio's servers, which see what is sent")
    if not accounts.by_name and config.server_name not in ("127.0.0.1", "localhost"):
        logger.warning("without --auth, everybody who reaches %s:%d may vote, train and delete", config.server_name, config.server_port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with at_work(config):
        blocks = build(config)
        _, address, shared = blocks.launch(
            server_name=config.server_name,
            server_port=config.server_port,
            auth=accounts.admits if accounts.by_name else None,
            root_path=config.root_path,
            share=config.share,
            inbrowser=config.inbrowser,
            footer_links=[],
            run_history=False,
            max_file_size=BYTES,
            theme=gr.themes.Default().set(**READABLE),
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(RequestLimits)]},
            quiet=True,
            prevent_thread_lock=True,
        )
        logger.info("Open %s in a browser. Ctrl-C ends it; trainings go on.", shared or address)
        blocks.block_thread()


@contextlib.contextmanager
def at_work(config: AppConfig) -> Iterator[None]:
    """Draw pictures ahead of the voters and work through the queue of trainings while the block runs."""
    drawing, queue, ended = Background(Path(config.output_dir) / "votes.db.log"), Queue(Path(config.output_dir) / JOBS), threading.Event()

    def work() -> None:
        for second in itertools.count(1):
            if ended.wait(1.0):
                return
            try:
                queue.step()
            except Exception:  # the thread lives on, so that the next look may find the folder mended
                logger.exception("the queue of trainings could not be read; it is looked at again")
            if config.ahead and second % DRAW_AGAIN == 0 and not drawing.busy:
                logger.warning("the drawing of pictures ended (%s); it is started again", drawing.trouble)
                drawing.start(draw_command(_ahead(config)))

    if config.ahead:
        drawing.start(draw_command(_ahead(config)))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        drawing.stop()


def _ahead(config: AppConfig) -> DrawVotesConfig:
    """Return what is drawn ahead of the voters."""
    return DrawVotesConfig(
        dataset_name=config.dataset_name,
        pretrained_model_name_or_path=[config.pretrained_model_name_or_path, *config.runs],
        prompts=[config.prompts] if config.prompts else [],
        ahead=config.ahead,
        images_per_prompt=RANKED if config.mode == "ranking" else 2,
        follow=True,
    )


def _ballot(config: AppConfig, store: VoteStore) -> Ballot:
    """Return the votes of the first page."""
    return Ballot(
        store,
        config.repeats,
        choose=chooser(config.choose, store),
        order="random" if config.choose == "random" else "balanced",
        ranking=config.mode == "ranking",
        second_question=config.second_question,
    )


def _studio(config: AppConfig) -> Studio | None:
    """Return the personalised run that draws for one person, None where there is none."""
    run = config.personal or shipped(config.pretrained_model_name_or_path)
    if run is None:
        return None
    prompts = prompts_to_draw([config.prompts])[:CHOSEN_FROM] if config.prompts else PROMPTS
    return Studio(run, VoteStore(Path(config.output_dir) / CHOICES), prompts)


def _accounts(config: AppConfig) -> Accounts:
    return Accounts.read(config.auth) if config.auth else Accounts()
