"""The model card of an exported run: how it was made, from which data, what it gains, and how to use each file.

Nothing in it says where files lie on this machine: a local folder is called by its own name alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from diffalign.adapters import WEIGHTS
from diffalign.backbones.folders import EMBEDDED, is_local
from diffalign.data.table import MANIFEST, is_table
from diffalign.methods import METHODS

SETTINGS = ("train_method", "rank", "lora_alpha", "lora_layers", "resolution", "learning_rate", "lr_scheduler", "mixed_precision", "seed")
NOT_MEASURES = ("output_dir", "grid", "seed", "ci95")  # of a report
PICTURE = "pictures.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a run's folder says about it."""

    run: Mapping[str, Any]
    settings: Mapping[str, Any]  # config.yaml
    manifest: Mapping[str, Any] | None  # of the table it was trained on, if that is still there
    report: Mapping[str, Any]  # eval/report.json
    picture: Path | None

    @classmethod
    def read(cls, folder: Path, run: Mapping[str, Any]) -> Source:
        """Return what lies in `folder`, the output_dir of a finished run."""
        config, report = folder / "config.yaml", folder / "eval" / "report.json"
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        drawn = [folder / "eval" / "grid.png", *sorted(folder.glob("validation/step-*.png"), reverse=True)]
        return cls(
            run=run,
            settings=settings,
            manifest=_manifest(folder, settings, run.get("table")),
            report=json.loads(report.read_text()) if report.is_file() else {},
            picture=next((path for path in drawn if path.is_file()), None),
        )


def _manifest(folder: Path, settings: Mapping[str, Any], fingerprint: Any) -> dict[str, Any] | None:
    """Return the manifest of the run's table, unless it has been moved or changed since."""
    for path in (Path(settings.get("dataset_name") or ""), folder / "data"):
        if is_table(path):
            facts = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if facts["fingerprint"] == fingerprint:
                return facts
    return None


def public(name: str) -> str:
    """Return a hub id as it is, and the last part of a local path."""
    return EMBEDDED.get(name) or (Path(name).name if is_local(name) else name)


def model_card(source: Source, *, name: str, repo: str, kind: str, formats: Sequence[str]) -> ModelCard:
    """Return the card of an export called `name`, found at `repo`, with the files of `formats`; `kind` is the base's pipeline class."""
    run, paper = source.run, METHODS[source.run["method"]].paper
    known = run["base"] not in EMBEDDED and not is_local(run["base"])
    adapter = ["dora" if run["train_method"] == "dora" else "lora"] if "diffusers" in formats or "comfyui" in formats else []
    tags = ["text-to-image", "diffusers", "diffusers-training", *adapter, run["method"].replace("_", "-")]
    data = ModelCardData(
        base_model=run["base"] if known else None,  # the hub takes its own ids alone
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
    )
    about = f"{public(run['base'])} aligned with human preferences by `{run['method']}` ([{paper}](https://arxiv.org/abs/{paper}))."
    files = "\n".join(f"- {line}" for line in _files(name, formats))
    parts = [f"# {name}", about, *_warning(run), "## Files", files, "## Use", _usage(run, repo, kind, formats)]
    parts += [f"![pictures of this model]({PICTURE})"] if source.picture else []
    parts += ["## Training", _table(_training(source)), "## Data", _data(source), "## Results", _results(source.report)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _warning(run: Mapping[str, Any]) -> list[str]:
    if run.get("inference") != "negative_guidance":
        return []
    return [
        "**This adapter is for the unconditional branch of guidance alone**: it has learnt what to steer away from. Loaded into the "
        "whole network, as adapters usually are, it makes pictures worse."
    ]


def _files(name: str, formats: Sequence[str]) -> list[str]:
    lines = {
        "diffusers": f"`{WEIGHTS}`: the adapter for diffusers, with its config",
        "comfyui": f"`{name}_comfyui.safetensors`: the same LoRA for ComfyUI (folder `models/loras`) and kohya's scripts, at strength 1",
        "merged": "`model_index.json` and the folders it names: the whole pipeline, its weights already changed (load no LoRA on top)",
    }
    return [lines[form] for form in formats]


def _usage(run: Mapping[str, Any], repo: str, kind: str, formats: Sequence[str]) -> str:
    """Return a snippet for diffusers."""
    lines = [
        f"from diffusers import {kind}",
        "",
        f'pipe = {kind}.from_pretrained("{repo if "merged" in formats else public(run["base"])}")',
    ]
    draw = 'pipe("a red star").images[0].save("picture.png")'
    if run.get("inference") == "negative_guidance":
        lines.insert(0, "from diffalign.infer.negative import negative_guidance")
        lines += [f'with negative_guidance(pipe, "{repo}"):  # a folder, or the file in it', f"    {draw}"]
    elif "merged" in formats:
        lines.append(draw)
    elif kind.startswith("PixArt"):  # its pipelines read no LoRA files themselves
        lines.insert(1, "from peft import PeftModel")
        lines += [f'pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "{repo}")', draw]
    elif "diffusers" in formats:
        lines += [f'pipe.load_lora_weights("{repo}", weight_name="{WEIGHTS}")', draw]
    else:
        return "Put the file into ComfyUI's `models/loras` and load it with a LoRA node, strength 1."
    return "\n".join(["```python", *lines, "```"])


def _training(source: Source) -> dict[str, Any]:
    run = source.run
    facts = {"method": run["method"], "objective": run.get("objective"), "trajectory": run.get("trajectory")}
    facts |= {"base": public(run["base"]), "revision": run.get("revision")}
    facts |= {"optimiser steps": run.get("steps"), "records in a step": run.get("batch"), "records": run.get("records")}
    return facts | {setting.replace("_", " "): source.settings.get(setting) for setting in SETTINGS}


def _data(source: Source) -> str:
    facts = source.manifest
    if facts is None:
        return f"The table of the training records is no longer beside the run; its fingerprint is `{source.run.get('table')}`."
    licence = next((facts[key] for key in ("licence", "licences", "license", "licenses") if facts.get(key)), None)
    rows = {
        "source": public(str(facts.get("dataset_name") or source.settings.get("dataset_name") or "")),
        "split": facts.get("split"),
        "layout": facts.get("reader"),
        "rows": facts["rows"],
        "strict preferences": facts["strict"],
        "ties": facts["ties"],
        "rows left out": facts.get("rejected_rows"),
        "voters": facts["users"] or None,
        "licence": licence or "not recorded; see the source",
        "fingerprint": facts["fingerprint"],
    }
    return _table(rows)


def _results(report: Mapping[str, Any]) -> str:
    rows = dict(_measures(report))
    return _table(rows) if rows else "Not measured."


def _measures(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the measures of a report and of the reports in it, a win rate with its interval."""
    for name, value in report.items():
        title = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _measures(value, f"{title} ")
        elif name == "win_rate" and report.get("ci95"):
            low, high = report["ci95"]
            yield title, f"{value:g} (95 % interval {low:g} to {high:g}) against the base, same prompts and seeds"
        elif name not in NOT_MEASURES and isinstance(value, int | float | str):
            yield title, public(value) if isinstance(value, str) else value


def _table(rows: Mapping[str, Any]) -> str:
    """Return a Markdown table of what is known."""
    shown = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "")]
    return "\n".join(["| | |", "| --- | --- |", *shown])


def _cell(value: Any) -> str:
    plain = json.dumps(value) if isinstance(value, dict | list) else f"{value:g}" if isinstance(value, float) else str(value)
    return plain.replace("|", "\\|").replace("\n", " ")
