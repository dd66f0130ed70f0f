"""Images of a folder as records to be scored: with prompts of their own, or each under all of some prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.pictures import is_picture_name
from diffalign.data.readers.captions import captions_of
from diffalign.data.records import Candidate, Record


def images_of(folder: str, prompts: Sequence[str] = ()) -> Iterator[Record]:
    """Yield a record for each prompt with all its images as candidates, whose uid is the file's path below `folder`.

    With `prompts` every image is a candidate of every prompt. Without, an image's prompt is in `name.txt` beside it or in a
    `metadata.jsonl` (file_name, text) of its folder; images without one have the empty prompt. Files are in the order of the numbers in
    their names. Raises RecordError if there is no image.
    """
    root = Path(folder).expanduser()
    files = sorted((path for path in root.rglob("*") if is_picture_name(path.name)), key=_in_order)
    if not files:
        raise RecordError(f"{root}: no image in the folder; expected files such as .png, .jpg or .webp")
    groups = dict.fromkeys(prompts, files) or _by_prompt(root, files)
    for index, (prompt, members) in enumerate(groups.items()):
        candidates = tuple(Candidate(image=file.read_bytes(), uid=file.relative_to(root).as_posix()) for file in members)
        yield Record(f"prompt-{index:06d}", prompt, candidates, source=f"{root}, prompt {index}")


def _by_prompt(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    captions = captions_of(root)
    for _, reason in captions.faults:
        raise RecordError(reason)
    groups: dict[str, list[Path]] = {}
    for file in files:
        prompt = next(iter(captions.all_of(file)), "")
        groups.setdefault(prompt, []).append(file)
    return groups


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Return a key by which `2.png` comes before `10.png`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.as_posix())]
