"""What a running training is asked to do after the step in hand, by an empty file in its output folder, which it takes away.

touch outputs/mine/save_now outputs/mine/sample_now
"""

from __future__ import annotations

from pathlib import Path

SAVE, SAMPLE = "save_now", "sample_now"  # a checkpoint, pictures of the validation prompts


def ask(output_dir: str | Path, request: str) -> None:
    """Ask the training in `output_dir` for `SAVE` or `SAMPLE`."""
    (Path(output_dir) / request).touch()


def taken(output_dir: str | Path, request: str) -> bool:
    """Return whether a training is asked for something, and take the request away."""
    try:
        (Path(output_dir) / request).unlink()
    except FileNotFoundError:
        return False
    return True
