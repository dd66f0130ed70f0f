"""What `diffalign app` is told: its flags, as a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EMBEDDED_WRITER = "assets/tiny-lm/sem_dpo"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """Open a page in the browser: vote on pictures, train on the votes, see the difference. Everything stays on this machine."""

    dataset_name: str = "outputs/app/votes.db"
    """Vote store, made if there is none. Its pictures lie in the folder NAME.pictures beside it; keep the two together."""
    pretrained_model_name_or_path: str = "assets/tiny-sd"
    """Model that draws the pictures and is trained: a folder in diffusers layout, or a hub id."""
    config: str = "configs/tiny/votes_inpo.yaml"
    """Recipe that training starts from; the page sets the votes, the method, beta and the number of steps."""
    runs: list[str] = field(default_factory=list)
    """Finished runs to compare with the model and with each other, besides those that the page trains."""
    writer: str = EMBEDDED_WRITER
    """Finished run of a language model, whose rewrites of prompts the page Rewrite shows before and after training."""
    prompts: str | None = None
    """Prompts to draw: a file, one on each line, or the name of a bundled set; those of the embedded world if not given."""
    personal: str | None = None
    """Finished run of ppd, which draws for one person on the page Yours; the one that comes with the embedded model if not given."""
    ahead: int = 24
    """Pairs that are drawn ahead of the voters; 0 draws none, for a store that was filled by `diffalign votes draw` or `votes add`."""
    repeats: float = 0.1
    """Share of questions that are asked twice, the sides exchanged, to measure how far a voter agrees with himself or herself."""
    choose: Literal["balanced", "random", "active"] = "balanced"
    """Which pair is asked next: one of the prompts that the voter saw least, any, or the one whose answer is expected to tell most."""
    mode: Literal["pairs", "ranking"] = "pairs"
    """Show two pictures of which the voter chooses one, or four to be put in order, for methods that learn from lists (rank_dpo)."""
    second_question: str = ""
    """A further question of each pair, which the voter may answer by left, right or tie, for example "Which follows the prompt better?"."""
    tables: list[str] = field(default_factory=list)
    """Folders whose tables owners may look through on the page Data, besides the votes and the tables of trainings."""
    output_dir: str = "outputs/app"
    """Folder of what the page trains, and of its logs."""
    server_name: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine."""
    server_port: int = 7860
    """Port to listen on."""
    auth: str | None = None
    """JSON file of those who may log in: {"ada": {"password": "...", "role": "owner"}, "bob": {"password": "...", "role": "voter"}}.
    Voters vote; owners also train and delete. Without it everybody who reaches the page is an owner."""
    root_path: str | None = None
    """Path under which a proxy serves the page, for example /vote."""
    share: bool = False
    """Open a public address through Gradio's servers; needs `auth`."""
    inbrowser: bool = False
    """Open the page in the browser of this machine."""
