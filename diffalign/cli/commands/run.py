"""What the subcommands do. Heavy libraries are imported by the command that needs them, after its cheap checks."""

from __future__ import annotations

import atexit
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from diffalign.cli.options.options import (
    ChesConfig,
    EmbedConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    QuickstartConfig,
    TextQuickstartConfig,
    ValidateConfig,
)
from diffalign.core.errors import ConfigError
from diffalign.data.importing import import_dataset
from diffalign.data.table import Table, is_table, read_table
from diffalign.methods.build.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.train.align import check_model, kind_of
from diffalign.train.align import train as run_training


def open_any(dataset_name: str) -> Table:
    """Return the table at `dataset_name`, or a dataset imported into a temporary table that lives as long as the process."""
    if is_table(dataset_name):
        return read_table(dataset_name)
    folder = tempfile.mkdtemp(prefix="diffalign-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
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


def data_cache(config: TrainConfig, *, points: bool = False) -> int:
    """Fill the caches that `diffalign train` with the same settings would fill, and say what was done."""
    if not is_table(config.dataset_name):
        raise ConfigError(f"{config.dataset_name}: not a table, and caches lie beside one; make it with `diffalign data import`")
    if points and not config.trajectory_cache:
        config = replace(config, trajectory_cache=4)
    config.check()
    check_model(config)
    view = open_dataset(config, kind=kind_of(config))
    import torch

    from diffalign.methods.build.image import parts

    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    parts(config, view, device)
    kept = f", {config.trajectory_cache} points of the trajectory for each" if config.trajectory_cache else ""
    what = "the reference's log-probabilities" if view.table.manifest["kind"] == "text" else "latents and prompts"
    print(f"{what} of {len(view)} records{kept}: {time.perf_counter() - start:.1f} s")
    print("train with the same settings" + (f" and --trajectory_cache {config.trajectory_cache}" if config.trajectory_cache else ""))
    return 0


def data_ches(config: ChesConfig) -> int:
    """Write the table with scores and say where it lies."""
    from diffalign.cli.commands import text as commands_text

    return commands_text.data_ches(config)


def data_inspect(config: InspectConfig) -> int:
    """Print a summary and write the contact sheet."""
    from diffalign.data.inspect import contact_sheet, preview, render_summary, summary

    table = open_any(config.dataset_name)
    print(render_summary(summary(table)))
    if table.manifest["kind"] != "image":
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


def export(config: ExportConfig) -> int:
    """Write the files and say where they lie."""
    if config.hub_model_id is not None and not config.push_to_hub:
        raise ConfigError("`hub_model_id` says where to upload to; add --push_to_hub, or leave it out")
    if not (Path(config.output_dir) / "run.json").is_file():
        raise ConfigError(f"{config.output_dir}: no finished run; expected the output_dir of `diffalign train`")
    from diffalign.infer.export.export import export_run

    folder = export_run(
        config.output_dir,
        config.destination,
        formats=config.formats,
        name=config.name,
        dtype=config.dtype,
        users=config.users,
        overwrite=config.overwrite,
        push_to_hub=config.push_to_hub,
        hub_model_id=config.hub_model_id,
    )
    for path in sorted(folder.iterdir()):
        print(path)
    return 0


def user_embed(config: EmbedConfig) -> int:
    """Write the users' files and say where they lie."""
    if (config.dataset_name is None) == (config.profile is None):
        raise ConfigError("`diffalign user embed` needs --dataset_name with a user's pairs, or --profile with a text about the user")
    if config.profile is not None and (config.user_id is not None or config.max_pairs is not None):
        raise ConfigError("`profile` is all that is said about a user; leave out --user_id and --max_pairs")
    if config.max_pairs is not None and config.max_pairs < 1:
        raise ConfigError(f"`max_pairs` is {config.max_pairs}; expected at least one pair")
    if not (Path(config.output_dir) / "run.json").is_file():
        raise ConfigError(f"{config.output_dir}: no finished run; expected the output_dir of `diffalign train`")
    import torch

    from diffalign.infer.embed_users import embed_profile, embed_users

    given = {"overwrite": config.overwrite, "device": config.device or ("cuda" if torch.cuda.is_available() else "cpu")}
    if config.profile is not None:
        print(embed_profile(config.output_dir, config.profile, config.destination, **given))
        return 0
    pairs = {"reader": config.reader, "split": config.dataset_split_name, "user_id": config.user_id, "max_pairs": config.max_pairs}
    for file in embed_users(config.output_dir, config.dataset_name or "", config.destination, **pairs, **given):
        print(file)
    return 0


def quickstart(config: QuickstartConfig, command: str) -> int:
    """Run the loop and say where the report lies."""
    from diffalign.cli.demo.images import Quickstart

    report = Quickstart(config, command).run()
    facts = json.loads(report.with_suffix(".json").read_text())
    low, high = facts["ci95"]
    spread = "no interval" if low is None else f"95 % interval {low:.3f} to {high:.3f}"
    print(f"win rate {facts['win_rate']:.3f} ({spread}) on {facts['prompts_heldout']} prompts not trained on")
    print(f"report: {report}")
    return 0


def quickstart_text(config: TextQuickstartConfig, command: str) -> int:
    """Run the loop of the model that writes prompts and say where the report lies."""
    from diffalign.cli.demo.prompts import TextQuickstart

    report = TextQuickstart(config, command).run()
    facts = json.loads(report.with_suffix(".json").read_text())
    (low, high), (least, most) = facts["taste_gain_ci95"], facts["kept_over_plain_ci95"]
    print(f"taste of the pictures {facts['taste_base']:.3f} -> {facts['taste_aligned']:.3f} (gain {low:+.3f} to {high:+.3f}, 95 %)")
    print(
        f"meaning kept {facts['kept_base']:.3f} -> {facts['kept_aligned']:.3f}; without the weight of meaning {facts['kept_plain']:.3f} "
        f"(difference {least:+.3f} to {most:+.3f})"
    )
    print(f"report: {report}")
    return 0


def train(config: TrainConfig, *, dry_run: bool = False) -> int:
    """Train and say where the result lies; or only say what would be trained."""
    config.check()
    check_model(config)
    if dry_run:
        if int(os.environ.get("RANK", "0")) == 0:
            print(_outlook(config))
        return 0
    if config.generate:
        from diffalign.train import rounds  # what draws takes seconds to import

        folder = rounds.train(config)
    else:
        folder = run_training(config)
    facts = json.loads((folder / "run.json").read_text())
    if facts["inference"] == "reward":
        print(f"done: {folder}; use it as the scorer {{trained: {{path: {folder}}}}}")
        return 0
    print(f"done: {folder}; use it with diffalign.load({str(folder)!r})")
    return 0


def _outlook(config: TrainConfig) -> str:
    if config.generate:
        from diffalign.train import rounds

        return rounds.outlook(config)
    from diffalign.train.dry_run import report

    return report(config)


def env() -> int:
    """Print what a bug report should say."""
    names = ("diffalign", "torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "xformers")
    names += ("bitsandbytes", "torchao")
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
