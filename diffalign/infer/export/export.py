"""A finished run as files for other programs: a LoRA for diffusers, one for ComfyUI and kohya's scripts, or merged weights."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id
from safetensors.torch import save_file

from diffalign.core.errors import CheckpointError, ConfigError, did_you_mean
from diffalign.core.files import atomic_folder
from diffalign.core.runs import Run
from diffalign.infer.export.card import PICTURE, Base, RunFiles, model_card, public
from diffalign.infer.export.lora_file import comfyui_tensors, kohya_facts, updates
from diffalign.infer.export.text_encoders import encoder_adapters, encoder_updates, named_tensors
from diffalign.infer.export.user_files import FOLDER, write_personal
from diffalign.infer.load import load
from diffalign.models.adapter_files import MODEL, PEFT_CONFIG, PEFT_WEIGHTS, WEIGHTS, AdapterFile, encoders_in
from diffalign.models.adapters import merge, peft_files
from diffalign.models.backbones.folders import layout_of, resolve
from diffalign.models.backbones.quantised_file import is_quantised
from diffalign.models.backbones.table import BACKBONES
from diffalign.models.weights import UNREADABLE

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MARK = "export.json"  # says what was exported, and that the folder may be replaced by another export
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' words and ModelSpec's
TOKEN = "HF_TOKEN"  # noqa: S105  # the name of the variable


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A run, the model it started from, and what is to be made of them."""

    run: Run
    base: Base
    network: Any  # the denoiser's class
    config: Mapping[str, Any]  # the denoiser's
    scheduler: Mapping[str, Any]
    name: str
    dtype: torch.dtype
    users: tuple[Path, ...] = ()  # files of users that come with a personalised run

    def facts(self) -> dict[str, str]:
        """Return the metadata of every LoRA file of this job."""
        architecture, _ = BACKBONES[self.base.layout.family].architecture(self.config, self.scheduler)
        loras = self.run.facts.get("base_lora") or ()
        hint = {"modelspec.usage_hint": "for the unconditional branch of guidance alone"} if self.run.steers else {}
        if self.scheduler.get("prediction_type") in PREDICTIONS:
            hint["modelspec.prediction_type"] = PREDICTIONS[self.scheduler["prediction_type"]]
        return {
            "format": "pt",
            "base": public(self.run.base),
            "method": self.run.method,
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.title": self.name,
            "modelspec.description": f"{public(self.run.base)} aligned with preferences by {self.run.method}",
            **hint,
            **({"base_lora": json.dumps([[Path(lora["file"]).name, lora["strength"]] for lora in loras])} if loras else {}),
        }


def export_run(
    output_dir: str | Path,
    destination: str | Path,
    *,
    formats: Sequence[str] | None = None,
    name: str | None = None,
    dtype: str = "fp32",
    users: Sequence[str | Path] = (),
    overwrite: bool = False,
    push_to_hub: bool = False,
    hub_model_id: str | None = None,
) -> Path:
    """Write a finished run to the folder `destination`, whole or not at all, with a model card, and return the folder.

    Args:
        output_dir: folder of the finished run.
        destination: folder of the export.
        formats: `diffusers`, `comfyui` (LoRA files; both if there are none), or `merged`, the only one for a full fine-tune.
        name: what the card calls the model; the name of the run's folder if there is none.
        dtype: precision of `merged`: fp32, fp16 or bf16.
        users: of a personalised run, files of users' tokens to take along.
        overwrite: replace an export at `destination`.
        push_to_hub: also upload the folder, with the token in HF_TOKEN, to `hub_model_id` or to `name` under one's own account.

    Raises CheckpointError for a folder without a finished run; ConfigError, before anything is written, for formats that the run does
    not allow, layers without a published place, a destination that is taken, and a missing token.

    Example:
        >>> export_run("outputs/mine", "outputs/mine-lora", formats=["comfyui"])  # doctest: +SKIP
    """
    run, target = Run.open(output_dir), Path(destination)
    chosen = _formats(run, formats)
    _check_target(target, overwrite)
    export = replace(_job(run, name, dtype), users=_users(run, users))
    api, repo = _hub(export.name, hub_model_id) if push_to_hub else (None, target.name)
    with atomic_folder(target) as temporary:
        _write(export, chosen, repo, temporary)
    if api is not None:
        _push(api, repo, target)
    return target


def _write(export: Export, formats: Sequence[str], repo: str, folder: Path) -> None:
    """Write the files of every format, and the model card beside them."""
    source = RunFiles.read(export.run)
    for form in formats:
        FORMATS[form](export, folder)
    if source.picture is not None:
        shutil.copyfile(source.picture, folder / PICTURE)
    beside = [f"{FOLDER}/{file.name}" for file in export.users]
    model_card(source, name=export.name, repo=repo, base=export.base, formats=formats, users=beside).save(folder / "README.md")
    _mark(export, formats, folder)


def _formats(run: Run, wanted: Sequence[str] | None) -> list[str]:
    """Return the formats to write, adapters first. Raises ConfigError for those that this run has not."""
    if run.kind == "text":
        raise ConfigError(
            f"the run of a language model is in the format of its library already: {PEFT_WEIGHTS} for peft's PeftModel.from_pretrained, "
            f"or after full fine-tuning the folder `{MODEL}` for AutoModelForCausalLM"
        )
    if run.conditioned:
        raise ConfigError(
            f"{run.folder}: a ControlNet is in the format of other programs already: the folder `controlnet` for ControlNetModel of "
            "diffusers, the weights in it for ComfyUI"
        )
    adapter = run.steers or not run.full
    for form in wanted or ():
        if form not in FORMATS:
            raise ConfigError(f"`formats`: there is no `{form}`.{did_you_mean(form, FORMATS)}")
        if form != "diffusers" and run.personal:
            raise ConfigError(
                f"`formats`: a run of {run.method} cannot be written as `{form}`: what it adds depends on the user, so it has no "
                "merged weights, and it is no LoRA; choose --formats diffusers, an IP-Adapter"
            )
        if form == "merged" and run.steers:
            raise ConfigError(
                f"`formats`: a run of {run.method} is not merged: it is for the unconditional branch of guidance, and in the whole "
                "network it makes pictures worse; export its adapter with --formats diffusers comfyui"
            )
        if form == "merged" and run.facts.get("denoiser") and is_quantised(Path(run.facts["denoiser"])):
            raise ConfigError(
                f"`formats`: the run's denoiser {run.facts['denoiser']} is quantised, so that an adapter is not merged into its weights; "
                "choose --formats diffusers comfyui"
            )
        if form != "merged" and not adapter:
            raise ConfigError(f"`formats`: this run trained all weights, and there is no LoRA for `{form}`; choose --formats merged")
    own = ("diffusers",) if run.personal else ("diffusers", "comfyui") if adapter else ("merged",)
    return [form for form in FORMATS if form in (wanted or own)]


def _mark(export: Export, formats: Sequence[str], folder: Path) -> None:
    facts = {"name": export.name, "formats": formats, "base": public(export.run.base), "method": export.run.method}
    (folder / MARK).write_text(json.dumps(facts, indent=2) + "\n")


def _users(run: Run, users: Sequence[str | Path]) -> tuple[Path, ...]:
    """Return the files of users. Raises ConfigError where the run knows none, and for two of one name."""
    files = tuple(map(Path, users))
    if files and not run.personal:
        raise ConfigError(f"`users`: a run of {run.method} knows no users; leave them out")
    if len({file.name for file in files}) < len(files):
        raise ConfigError(f"`users`: two files have the same name, in {', '.join(map(str, files))}; rename one")
    return files


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise ConfigError if exporting there would remove something else than an earlier export."""
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / MARK).is_file()):
        raise ConfigError(f"`destination`: {target} holds other things than an export; they are left alone, choose another folder")
    if (target / MARK).is_file() and not overwrite:
        raise ConfigError(f"`destination`: {target} holds an export already; choose another folder, or replace it with --overwrite")


def _job(run: Run, name: str | None, dtype: str) -> Export:
    """Return the job after reading the base's configs; no weights are read."""
    base, revision = resolve(run.base), run.facts.get("revision")
    try:
        index: Any = DiffusionPipeline.load_config(base, revision=revision)
        layout = layout_of(index.get("_class_name"), run.base)
        network, scheduler = (getattr(diffusers, index[part][1]) for part in (layout.component, "scheduler"))
        config, schedule = (
            kind.load_config(base, subfolder=part, revision=revision)
            for kind, part in ((network, layout.component), (scheduler, "scheduler"))
        )
    except UNREADABLE as error:
        raise CheckpointError(f"{run.base}: the base of this run cannot be read ({error})") from error
    if dtype not in DTYPES:
        raise ConfigError(f"`dtype`: there is no `{dtype}`.{did_you_mean(dtype, DTYPES)}")
    tail = [] if run.full else [run.tuning]
    title = name or "-".join([public(run.base).split("/")[-1], run.method, *tail])
    if not re.fullmatch(r"\w[\w.-]*", title):
        raise ConfigError(f"`name`: found {title!r}; expected letters, digits, dots, dashes and underscores, as in a file name")
    absent = tuple(part for part in layout.optional if (index.get(part) or [None])[0] is None)
    return Export(
        run=run,
        base=Base(kind=index["_class_name"], layout=layout, absent=absent),
        network=network,
        config=config,
        scheduler=schedule,
        name=title,
        dtype=DTYPES[dtype],
    )


def _read(export: Export) -> AdapterFile:
    """Return the run's adapter, checked against the shapes of the network that it belongs to. Raises CheckpointError if it is odd."""
    adapter = AdapterFile.read(export.run.folder, export.base.layout.component)
    with torch.device("meta"):
        adapter.inject(export.network.from_config(dict(export.config)))
    adapter.refuse_idle()
    return adapter


def _write_diffusers(export: Export, folder: Path) -> None:
    """Write the run's own adapter, with more metadata, and peft's files where it has them; or what a personalised run has."""
    if export.run.personal:
        write_personal(export.run, export.users, folder)
        return
    adapter = _read(export)
    facts = {**adapter.metadata, **export.facts(), "modelspec.implementation": "diffusers"}
    encoders = [adapter.tensors for adapter in encoder_adapters(export.run).values()]
    save_file({name: value for part in (adapter.tensors, *encoders) for name, value in part.items()}, folder / WEIGHTS, metadata=facts)
    if (export.run.folder / PEFT_CONFIG).is_file():
        peft_files(folder, adapter.plain(), adapter.config)


def _write_comfyui(export: Export, folder: Path) -> None:
    layers, family = updates(_read(export)), export.base.layout.family
    words = encoder_updates(encoder_adapters(export.run), export.base.layout)
    tensors = comfyui_tensors(family, layers, export.config) | named_tensors(words)
    facts = export.facts() | kohya_facts(family, {**layers, **words}, export.config, export.scheduler) | {"ss_output_name": export.name}
    save_file(tensors, folder / f"{export.name}_comfyui.safetensors", metadata=facts)


def _write_merged(export: Export, folder: Path) -> None:
    """Write the stock pipeline with the run's result in its weights."""
    pipe = load(export.run.folder, dtype=export.dtype)
    for part in (export.base.layout.component, *encoders_in(export.run.folder)):
        merge(getattr(pipe, part))
    pipe.save_pretrained(folder, safe_serialization=True)
    for file in (*folder.glob("*.json"), *folder.glob("*/*.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts.pop("_name_or_path", None) is not None:  # where diffusers loaded it from on this machine
            file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


FORMATS: dict[str, Callable[[Export, Path], None]] = {
    "diffusers": _write_diffusers,
    "comfyui": _write_comfyui,
    "merged": _write_merged,
}


def _hub(name: str, wanted: str | None) -> tuple[HfApi, str]:
    """Return the hub, and the repository to write to. Raises ConfigError for a missing or refused token, and a name the hub refuses."""
    token = os.environ.get(TOKEN)
    if not token:
        raise ConfigError(f"`push_to_hub`: the environment variable {TOKEN} is not set; it must hold a token that may write")
    api = HfApi(token=token)
    try:
        repo = wanted if wanted and "/" in wanted else f"{api.whoami()['name']}/{wanted or name}"
        validate_repo_id(repo)
    except (HFValidationError, httpx.HTTPError, OSError) as error:
        raise ConfigError(f"`push_to_hub`: the hub refuses this ({error})") from error
    return api, repo


def _push(api: HfApi, repo: str, folder: Path) -> None:
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export with diffalign")
    except (httpx.HTTPError, OSError) as error:
        raise ConfigError(f"`push_to_hub`: the hub did not take {repo} ({error}); the export itself lies whole in {folder}") from error
    logger.info("pushed to %s", url)
