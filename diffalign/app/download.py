"""A run as one file to take away: what `diffalign export` writes, in a zip."""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from pathlib import Path

from diffalign.app.commands import export_command
from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run, model_name


def zipped(run: str | Path) -> Path:
    """Return a zip, in a temporary folder of its own, with the LoRA for diffusers and for ComfyUI and the model card of a finished run.

    Raises CheckpointError for a folder without one, ConfigError for a run that is no LoRA and where the export fails.
    """
    if Run.open(run, expects="image").tuning not in ("lora", "dora"):
        raise ConfigError(
            "this run trained more than a LoRA, too large to download here; write it with `diffalign export --formats merged`"
        )
    name = model_name(run).replace("/", "-")
    folder = Path(tempfile.mkdtemp(prefix="diffalign-"))
    made = subprocess.run(export_command(run, folder / name), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603, a list, no shell
    if made.returncode:
        lines = (made.stderr or made.stdout).strip().splitlines() or ["it ended without a word"]
        raise ConfigError(f"the export failed: {lines[-1]}")
    file = folder / f"{name}.zip"
    with zipfile.ZipFile(file, "w") as archive:  # weights do not compress
        for part in sorted((folder / name).iterdir()):
            archive.write(part, part.name)
            part.unlink()
    return file
