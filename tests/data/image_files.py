"""Six small images that differ, and a way to lay files out for a reader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image


def jpeg(index: int) -> bytes:
    """Return a JPEG of its own for each index."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).point(lambda level: (level + 40 * index) % 256).save(buffer, "JPEG")
    return buffer.getvalue()


JPEGS = [jpeg(index) for index in range(6)]


def put(folder: Path, files: dict[str, Any]) -> Path:
    """Write texts, bytes and, by number, images to `folder` and return it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = JPEGS[content] if isinstance(content, int) else content
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder
