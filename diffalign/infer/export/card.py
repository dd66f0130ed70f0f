"""The model card of an exported run: how it was made, from which data, what it gains, and how to use each file.

Nothing in it says where files lie on this machine: a local folder is called by its own name alone.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers.loaders.lora_base import LoraBaseMixin
from huggingface_hub import ModelCard, ModelCardData

from diffalign.core.documents import check_types, read_mapping, read_yaml
from diffalign.core.errors import CheckpointError
from diffalign.core.keys import keys_for
from diffalign.core.redaction import redacted
from diffalign.core.runs import Run
from diffalign.data.table import is_table, read_manifest
from diffalign.infer.export.user_card import personal_files, personal_usage
from diffalign.infer.negative import ADAPTER
from diffalign.methods import method_of
from diffalign.methods.config import TrainConfig
from diffalign.models.adapter_files import WEIGHTS
from diffalign.models.backbones.folders import EMBEDDED, Layout, is_local
from diffalign.models.backbones.table import BACKBONES
from diffalign.rewards.base import record, standing

PICTURE = "pictures.png"
SETTINGS: dict[str, tuple[type, ...]] = {  # what is read of config.yaml here and in `evaluate.panel`
    "dataset_name": (str,),
    "scores": (dict,),
    **dict.fromkeys(("transforms", "eval_scorers"), (list,)),
    **dict.fromkeys(("curriculum", "eval_reward"), (str, dict)),
}
HUB_ID = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model that a run started from, as its pipeline has to be called."""

    kind: str  # the pipeline class
    layout: Layout
    absent: tuple[str, ...]  # parts that the pipeline is without

    @property
    def reads_lora(self) -> bool:
        """Return whether the pipeline has `load_lora_weights`, which PixArt's lack."""
        return issubclass(getattr(diffusers, self.kind), LoraBaseMixin)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What a run's folder says about it."""

    run: Run
    settings: Mapping[str, Any]  # config.yaml
    manifest: Mapping[str, Any] | None  # of the table it was trained on, if that is still there
    report: Mapping[str, Any]  # eval/eval.json
    picture: Path | None

    @classmethod
    def read(cls, run: Run) -> RunFiles:
        """Return what lies in the folder of a finished run."""
        folder = run.folder
        config, report = folder / "config.yaml", folder / "eval" / "eval.json"
        settings = redacted(read_yaml(config)) if config.is_file() else {}
        check_types(settings, SETTINGS, str(config), CheckpointError)
        drawn = [folder / "eval" / "grid.png", *sorted(folder.glob("validation/step-*.png"), reverse=True)]
        return cls(
            run=run,
            settings=settings,
            manifest=_manifest(folder, settings, run.facts.get("table")),
            report=redacted(read_mapping(report, CheckpointError)) if report.is_file() else {},
            picture=next((path for path in drawn if path.is_file()), None),
        )


def _manifest(folder: Path, settings: Mapping[str, Any], fingerprint: Any) -> dict[str, Any] | None:
    """Return the manifest of the run's table, unless it has been moved or changed since."""
    for path in (Path(settings.get("dataset_name") or ""), folder / "data", *folder.glob("round-*/data")):
        if is_table(path):
            facts = read_manifest(path)
            if facts["fingerprint"] == fingerprint:
                return facts
    return None


def public(name: str) -> str:
    """Return a hub id as it is, and the last part of a local path."""
    return EMBEDDED.get(name) or (Path(name).name if is_local(name) else name)


def escaped(text: str) -> str:
    """Return a text for one line of Markdown, in which no HTML, link or code of it takes effect.

    >>> escaped("<b>a</b> [b](http://c)")
    '&lt;b&gt;a&lt;/b&gt; [b]\\\\(http://c)'
    """
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"(?<=\])(?=\()|(?=[`|])", lambda _: "\\", text)


def literal(text: str | float) -> str:
    """Return a text or number as a literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def model_card(source: RunFiles, *, name: str, repo: str, base: Base, formats: Sequence[str], users: Sequence[str] = ()) -> ModelCard:
    """Return the card of an export called `name`, found at `repo` (a folder or a hub id), with the files of `formats` and of `users`."""
    run, paper = source.run, method_of(source.run).paper
    on_hub = run.base not in EMBEDDED and not is_local(run.base) and re.fullmatch(HUB_ID, run.base)
    kind = {"dora": "dora", "user": "ip-adapter"}.get(run.tuning, "lora")
    adapter = [kind] if "diffusers" in formats or "comfyui" in formats else []
    tags = ["text-to-image", "diffusers", "diffusers-training", *adapter, run.method.replace("_", "-")]
    data = ModelCardData(
        base_model=run.base if on_hub else None,  # the hub takes its own ids alone
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
    )
    about = f"{escaped(public(run.base))} aligned with human preferences by `{run.method}` ([{paper}](https://arxiv.org/abs/{paper}))."
    lines = personal_files(users, *run.facts["user_encoder"]) if run.personal else _files(name, formats)
    files, usage = "\n".join(f"- {line}" for line in lines), _usage(run, repo, base, formats, users)
    parts = [f"# {escaped(name)}", about, *_warning(run), *_base_loras(run, formats), "## Files", files, "## Use", usage]
    parts += [f"![pictures of this model]({PICTURE})"] if source.picture else []
    parts += ["## Training", _table(_training(source)), "## Data", _data(source), "## Results", _results(source)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _warning(run: Run) -> list[str]:
    if not run.steers:
        return []
    return [
        "**This adapter is for the unconditional branch of guidance alone**: it has learnt what to steer away from. Loaded into the "
        "whole network, as adapters usually are, it makes pictures worse."
    ]


def _base_loras(run: Run, formats: Sequence[str]) -> list[str]:
    """Return what is said of LoRA files that are part of the base."""
    loras = run.facts.get("base_lora") or ()
    if not loras:
        return []
    listed = ", ".join(f"`{escaped(Path(lora['file']).name)}` at strength {lora['strength']:g}" for lora in loras)
    use = "They are in the merged weights already." if "merged" in formats else ""
    use += " An adapter of this run goes on top of them: load them first." if {"diffusers", "comfyui"} & set(formats) else ""
    return [f"**The base it was trained on has LoRA fused in**: {listed}. {use.strip()}"]


def _files(name: str, formats: Sequence[str]) -> list[str]:
    lines = {
        "diffusers": f"`{WEIGHTS}`: the adapter for diffusers, with its config",
        "comfyui": f"`{name}_comfyui.safetensors`: the same LoRA for ComfyUI (folder `models/loras`) and kohya's scripts, at strength 1",
        "merged": "`model_index.json` and the folders it names: the whole pipeline, its weights already changed (load no LoRA on top)",
    }
    return [lines[form] for form in formats]


def _usage(run: Run, repo: str, base: Base, formats: Sequence[str], users: Sequence[str]) -> str:
    """Return a snippet for diffusers, or a sentence where there is only a file for ComfyUI."""
    if not {"diffusers", "merged"} & set(formats):
        where = "only the model of the negative (unconditional) branch" if run.steers else "the model"
        return f"Put the file into ComfyUI's `models/loras` and apply it with a LoRA node to {where}, strength 1."
    options = "".join(f", {part}=None" for part in base.absent)  # else diffusers takes it for missing
    if "merged" not in formats:
        options += "".join(f", {name}={literal(run.facts[name])}" for name in ("revision", "variant") if run.facts.get(name))
    imports, lines, source = [f"from diffusers import {base.kind}"], [], literal(repo if "merged" in formats else run.base)
    if "merged" not in formats and is_local(run.base):
        more, place = _place_of(run.base)
        imports, lines, source = sorted([*imports, *more]), [place], "base"
    lines.append(f"pipe = {base.kind}.from_pretrained({source}{options})")
    lines += [] if "merged" in formats else _base_files(run, base.layout.component, source)
    if run.personal:
        return personal_usage(imports, lines, base.layout.family, repo, users, *run.facts["user_encoder"])
    both = BACKBONES[base.layout.family].guidance(4.0, true_cfg=True)  # which some draw only with a negative prompt
    guidance = "".join(f", {name}={literal(value)}" for name, value in both.items()) if run.steers and "negative_prompt" in both else ""
    draw = [f'pipe(prompt="a red star"{guidance}).images[0].save("picture.png")']
    if run.steers:
        more, steps = _negative_steps(repo, base)
        imports, lines, draw = sorted([*imports, *more]), [*lines, *steps], [f"    {line}" for line in draw]
    elif "merged" not in formats and not base.reads_lora:
        imports.append("from peft import PeftModel")
        lines.append(f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {literal(repo)})")
    elif "merged" not in formats:
        lines.append(f'pipe.load_lora_weights({literal(repo)}, weight_name="{WEIGHTS}")')
    return "\n".join(["```python", *imports, "", *lines, *draw, "```"])


def _base_files(run: Run, component: str, source: str) -> list[str]:
    """Return the lines that put the files into `pipe` which the run's base was made of besides the model at `source`."""
    lines = []
    if run.facts.get("denoiser"):
        file = literal(f"path/to/{Path(run.facts['denoiser']).name}")
        lines.append(f"kind = type(pipe.{component})  # its denoiser is the file of the next line")
        more = ", quantization_config=GGUFQuantizationConfig()" if file.endswith('.gguf"') else ""
        lines += ["from diffusers import GGUFQuantizationConfig  # and pip install gguf"] * bool(more)
        lines.append(f'pipe.{component} = kind.from_single_file({file}, config={source}, subfolder="{component}"{more})')
    for lora in run.facts.get("base_lora") or ():
        file = Path(lora["file"]).name
        lines.append(f'pipe.load_lora_weights("path/to", weight_name={literal(file)})  # put the folder here in which it lies')
        lines += [f"pipe.fuse_lora(lora_scale={literal(lora['strength'])})", "pipe.unload_lora_weights()"]
    return lines


def _place_of(name: str) -> tuple[list[str], str]:
    """Return imports and the line that say where a base lies that is on no hub; of a folder its reader knows, and the card does not."""
    if name in EMBEDDED:
        return ["from diffalign.models.backbones.folders import resolve"], f"base = resolve({literal(name)})  # a model inside diffalign"
    folder = literal(f"path/to/{public(name)}")
    return [], f"base = {folder}  # put the folder here in which the model lies that this was trained from"


def _negative_steps(repo: str, base: Base) -> tuple[list[str], list[str]]:
    """Return the imports and lines that put a negative adapter on `pipe`, up to the `with` whose block draws."""
    imports, folder = ["from diffalign.infer.negative import negative_guidance"], literal(repo)
    if "/" in repo:  # on the hub; an export on this machine is called by its folder's own name
        imports, folder = [*imports, "from huggingface_hub import snapshot_download"], f"snapshot_download({literal(repo)})"
    lines = [f"folder = {folder}"]
    if base.reads_lora:
        return imports, [*lines, "with negative_guidance(pipe, folder):"]
    imports += ["from pathlib import Path", "from diffalign.models.adapters import load_lora"]
    lines.append(f'load_lora(pipe, Path(folder), "{base.layout.component}", "{ADAPTER}")')
    return imports, [*lines, f'with negative_guidance(pipe, "{ADAPTER}"):']


def _training(source: RunFiles) -> dict[str, Any]:
    run = source.run.facts
    facts = {"method": run["method"], "objective": run.get("objective"), "trajectory": run.get("trajectory")}
    facts |= {"base": public(run["base"]), "revision": run.get("revision")}
    facts |= {"optimiser steps": run.get("steps"), "records in a step": run.get("batch"), "records": run.get("records")}
    adapter = run.get("adapter") if source.settings.get("start_from_lora") else None
    own = {} if adapter is None else {"rank": adapter["rank"], "lora alpha": adapter["alpha"], "went on from": "a LoRA file"}
    return facts | {setting.replace("_", " "): source.settings.get(setting) for setting in keys_for(TrainConfig, "card")} | own


def _data(source: RunFiles) -> str:
    facts = source.manifest
    if facts is None:
        table = escaped(str(source.run.facts.get("table")).replace("`", ""))
        return f"The table of the training records is no longer beside the run; its fingerprint is `{table}`."
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


def _results(source: RunFiles) -> str:
    try:
        rows = {name: value for name, value in _measures(source.report) if value not in (None, "")}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source.run.folder / 'eval' / 'eval.json'}: of no evaluation of diffalign ({error!r})") from error
    return _table(rows) if rows else "Not measured."


def _measures(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the results of an evaluation for its run, the second of its models: win rates, reasons for alarm, accuracy on pairs."""
    if report.get("runs"):
        run, standings = report["runs"][1]["name"], {scorer["name"]: standing(scorer) for scorer in report["scorers"]}
        yield "prompts", f"{report['prompts']}, {report['images_per_prompt']} images of each by both models, from the same seeds"
        for one in (one for one in report["comparisons"] if one["run"] == run and one["win_rate"] is not None):
            low, high = one["ci95"]
            spread = "too few prompts for an interval" if low is None else f"95 % interval {low:.3g} to {high:.3g}"
            details = f"{spread}; {record(one)}; {standings[one['scorer']]}"
            yield f"win rate by {one['scorer']}", f"{one['win_rate']:.3g} against the base ({details})"
        yield "alarm", "; ".join(report["alarm"][run])
    yield "implicit accuracy heldout", report.get("implicit_accuracy_heldout")


def _table(rows: Mapping[str, Any]) -> str:
    """Return a Markdown table without the empty rows."""
    shown = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "")]
    return "\n".join(["| | |", "| --- | --- |", *shown])


def _cell(value: Any) -> str:
    plain = json.dumps(value) if isinstance(value, dict | list) else f"{value:g}" if isinstance(value, float) else str(value)
    return escaped(plain)
