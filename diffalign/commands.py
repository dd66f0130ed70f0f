"""What the subcommands do. Heavy libraries are imported by the command that needs them, after its cheap checks."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from diffalign.api import train as run_training
from diffalign.config import TrainConfig
from diffalign.data.table import Table, is_table, read_table
from diffalign.dataset import import_dataset
from diffalign.errors import ConfigError, TableError


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartConfig:
    """See the whole loop on a small embedded Stable Diffusion: about five minutes on two cores, no GPU, no download."""

    output_dir: str = "outputs/quickstart"
    """Folder for pairs, weights and report."""
    model: str = "assets/tiny-sd"
    """The embedded model."""
    taste: str = "warm"
    """What the simulated voter likes: warm, large, centred, bright_background, contrast, bright_shape or high."""
    temperature: float = 0.0
    """How often the voter errs (Bradley-Terry); 0 never."""
    method: str = "diffusion_dpo"
    """Preference method."""
    train_prompts: int = 336
    """Prompts to make pairs for."""
    eval_prompts: int = 200
    """Prompts not trained on, to judge with."""
    beta: float = 2000.0
    """Beta of the objective."""
    learning_rate: float = 3e-4
    """Learning rate."""
    rank: int = 8
    """Rank of the LoRA adapter."""
    max_train_steps: int = 300
    """Optimiser steps."""
    train_batch_size: int = 32
    """Pairs a step."""
    num_inference_steps: int = 25
    """DDIM steps of every picture."""
    guidance_scale: float = 4.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed of prompts, pictures, votes and training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Read a dataset into a preference table: rows kept, and rows dropped with reasons."""

    dataset_name: str
    """Dataset file, folder, or hub id."""
    output_dir: str
    """Folder of the new table."""
    reader: str | None = None
    """Dataset layout; found by its columns if not given."""
    dataset_split_name: str | None = None
    """Split of the dataset, for example train."""
    max_train_samples: int | None = None
    """Read only so many rows."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and list them, instead of stopping at the first."""
    overwrite: bool = False
    """Replace a table that lies in output_dir."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig:
    """Show what a table or dataset holds: counts, label balance, ties, users, resolutions, and a sheet of rows as PNG."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    contact_sheet: str | None = None
    """Where to write the sheet of rows; beside the table as contact_sheet.png if not given."""
    rows: int = 8
    """Rows on the sheet."""
    seed: int = 0
    """Seed that chooses the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Look for what would spoil training: broken or tiny images, contradicting labels, duplicates, no strict pair."""

    dataset_name: str
    """Preference table, dataset file, folder, or hub id."""
    resolution: int | None = None
    """Warn of images smaller than this many pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Compare a trained run with its base model: same prompts, same seeds, win rate with interval; and unseen pairs."""

    output_dir: str
    """Folder of a finished `diffalign train` run."""
    prompts: list[str] = field(default_factory=list)
    """Prompts, or one path of a text file with a prompt a line."""
    taste: str | None = None
    """Judge of the embedded world: warm, large, centred, ...; without it only the pictures are written."""
    dataset_name: str | None = None
    """Labelled pairs not trained on, for the implicit accuracy."""
    num_inference_steps: int = 25
    """Denoising steps of every picture."""
    guidance_scale: float = 5.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed of the pictures."""


def open_any(dataset_name: str) -> Table:
    """Return the table at `dataset_name`, or a dataset imported into a temporary table that lives as long as the process."""
    if is_table(dataset_name):
        return read_table(dataset_name)
    import tempfile

    folder = tempfile.mkdtemp(prefix="diffalign-")
    return import_dataset(dataset_name, Path(folder) / "table", skip_bad=True)


def data_import(config: ImportConfig) -> int:
    """Import, and say what was kept and what was not."""
    table = import_dataset(
        config.dataset_name,
        Path(config.output_dir),
        reader=config.reader,
        split=config.dataset_split_name,
        skip_bad=config.skip_bad,
        overwrite=config.overwrite,
        limit=config.max_train_samples,
    )
    facts = table.manifest
    print(f"{facts['rows']} rows kept, {facts['rejected_rows']} dropped, read as {facts['reader']} -> {table.path}")
    for row in facts["rejected"][:20]:
        print(f"  dropped: {row['reason']}")
    if facts["rejected_rows"] > 20:
        print(f"  ... and {facts['rejected_rows'] - 20} more; the first 1000 are listed in {table.path / 'manifest.json'}")
    return 0


def data_inspect(config: InspectConfig) -> int:
    """Print a summary and write the contact sheet."""
    from diffalign.data.inspect import contact_sheet, preview, render_summary, summary

    table = open_any(config.dataset_name)
    print(render_summary(summary(table)))
    if table.manifest["kind"] == "text":
        print("\n".join(preview(table, config.rows)))
        return 0
    beside = table.path if is_table(config.dataset_name) else Path()
    path = Path(config.contact_sheet) if config.contact_sheet else beside / "contact_sheet.png"
    contact_sheet(table, path, rows=config.rows, seed=config.seed)
    print(f"sheet of {min(config.rows, len(table))} rows: {path}")
    return 0


def data_validate(config: ValidateConfig) -> int:
    """Print problems; exit status 1 if there are any."""
    from diffalign.data.inspect import validate

    table = open_any(config.dataset_name)
    problems = [f"dropped: {row['reason']}" for row in table.manifest["rejected"]] + validate(table, resolution=config.resolution)
    for problem in problems:
        print(problem)
    print(f"{len(table)} rows, {len(problems)} problems")
    return 1 if problems else 0


def evaluate(config: EvalConfig) -> int:
    """Print and write what the comparison gives."""
    if not config.prompts and not config.dataset_name:
        raise ConfigError("`diffalign eval` needs --prompts to draw, or --dataset_name with pairs not trained on")
    if not (Path(config.output_dir) / "run.json").is_file():
        raise ConfigError(f"{config.output_dir}: no finished run; expected the output_dir of `diffalign train`")
    prompts = prompts_of(config.prompts)
    from diffalign.evaluate import compare_run

    facts = compare_run(
        config.output_dir,
        prompts,
        taste=config.taste,
        dataset_name=config.dataset_name,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        seed=config.seed,
    )
    print(json.dumps(facts, indent=2))
    return 0


def quickstart(config: QuickstartConfig, command: str) -> int:
    """Run the loop and say where the report lies."""
    from diffalign.quickstart import Quickstart

    report = Quickstart(config, command).run()
    facts = json.loads(report.with_suffix(".json").read_text())
    low, high = facts["ci95"]
    print(f"win rate {facts['win_rate']:.3f} (95 % interval {low:.3f} to {high:.3f}) on {facts['prompts_heldout']} prompts not trained on")
    print(f"report: {report}")
    return 0


def train(config: TrainConfig) -> int:
    """Train and say where the result lies."""
    folder = run_training(config)
    print(f"done: {folder}; use it with diffalign.load({str(folder)!r})")
    return 0


def prompts_of(values: list[str]) -> list[str]:
    """Return prompts given one by one, or the lines of a text file. Raises ConfigError for a file that holds none."""
    if len(values) != 1 or Path(values[0]).suffix != ".txt":
        return values
    path = Path(values[0])
    if not path.is_file():
        raise ConfigError(f"`prompts`: there is no file {path}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise TableError(f"{path}: no prompt in the file; expected one a line")
    return lines


def env() -> int:
    """Print what a bug report should say."""
    names = ("diffalign", "torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "xformers", "bitsandbytes")
    print(f"python {sys.version.split()[0]} on {platform.platform()}")
    for name in names:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} not installed")
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"cuda: {', '.join(devices) or 'none'}; threads: {torch.get_num_threads()}")
    return 0
