# python -m scripts.prove_memory "[sd15_lora, sd15_full]"
"""The memory that a dry run estimates, beside what two real steps take at full size: published configs, random weights, the command line.

Each run is a process of its own. Its peak is that of all its resident memory, libraries and loading included, or on a GPU that of what
torch allocated there. With `torch_holds`, a second process counts what torch's allocator held on the CPU; counting takes memory itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from jsonargparse import auto_cli
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from diffalign.cli.main import main as diffalign
from diffalign.core.files import atomic_folder
from diffalign.models.backbones.folders import names_class
from diffalign.models.backbones.published import PUBLISHED, write_configs
from scripts.bench_step import peak_mib, write_pairs

RECORDS = 2
LORA = {"mixed_precision": "bf16", "rank": 8}
FULL = {"mixed_precision": "bf16", "train_method": "full", "gradient_checkpointing": True}
# By name: which of PUBLISHED, and what else than the flags of `command`.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15_lora": ("v1", LORA),
    "sd15_lora_fp32": ("v1", {**LORA, "mixed_precision": "no"}),
    "sd15_lora_checkpointing": ("v1", {**LORA, "gradient_checkpointing": True}),
    "sd15_full": ("v1", {**FULL, "method": "mapo", "optimizer": "adafactor"}),
    "sd15_full_fp32": ("v1", {**FULL, "mixed_precision": "no", "method": "mapo", "optimizer": "adafactor"}),
    "sd15_full_adamw": ("v1", {**FULL, "method": "mapo"}),
    "sdxl_lora": ("xl_base", {**LORA, "gradient_checkpointing": True}),
}


def write_model(kind: str, folder: Path) -> Path:
    """Write a model of PUBLISHED with random weights in bfloat16, in diffusers layout, unless it is there; return `folder`."""
    if folder.exists():
        return folder
    configs = PUBLISHED[kind]
    torch.manual_seed(0)
    with atomic_folder(folder) as made:
        write_configs(configs, made)
        for part, value in configs["model_index"].items():
            if not names_class(value) or value[0] is None or part.startswith(("tokenizer", "scheduler")):
                continue
            library: Any = diffusers if value[0] == "diffusers" else transformers
            network = getattr(library, value[1])
            config = configs[part]
            with torch.device("meta"):
                new: Any = network.from_config(config) if library is diffusers else network(network.config_class(**config))
            new = torch.nn.Module.to(new, torch.bfloat16).to_empty(device="cpu")  # the class's own method warns of it
            for parameter in new.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
            new.save_pretrained(made / part)
    return folder


def command(case: str, work: Path, side: int, options: dict[str, Any]) -> list[str]:
    """Return the flags of a case for `diffalign train`."""
    kind, own = CASES[case]
    flags = {
        "pretrained_model_name_or_path": write_model(kind, work / kind),
        "dataset_name": work / f"pairs-{side}",
        "cache_dir": work / "cache",
        "output_dir": work / f"{case}-{side}",
        "overwrite_output_dir": True,
        "resolution": side,
        "train_batch_size": 1,
        "max_train_steps": 2,
        "learning_rate": 1e-8,
        **own,
        **options,
    }
    return ["train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


def watched() -> None:
    """Run `diffalign` with this process's arguments but for the first, and print its peaks in bytes; if that is "torch", also torch's."""
    _, counting, *words = sys.argv
    peaks = {}
    if counting == "torch":
        status, peaks["torch"] = torch_peak(lambda: diffalign(words))
    else:
        status = diffalign(words)
    peaks["GPU" if torch.cuda.is_available() else "resident"] = round(peak_mib() * 2**20)
    print(json.dumps({"status": status, **peaks}))


def torch_peak(function: Any) -> tuple[Any, int]:
    """Return what a call returns, and the largest number of bytes that it held in torch's tensors on the CPU at once."""
    counted = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    counted.prepare_trace()
    counted.start_trace()  # leaving a `with` would make an event of Python of every operator, which takes longer than the steps
    try:
        result = function()
    finally:
        counted.stop_trace()
    ours: set[int] = set()  # addresses; what lay there before, the garbage of others, is not ours to count when it goes
    total = largest = 0
    for event in sorted(_allocations(counted), key=lambda event: event.start_time_ns):
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        if size > 0:
            ours.add(address)
        elif address not in ours:
            continue
        total += size
        largest = max(largest, total)
    return result, largest


def _allocations(counted: Any) -> Any:
    """Yield what a profile has of memory: where, when, and how many bytes, negative as they are freed."""
    waiting = list(counted.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            yield event


def run(words: list[str], counting: str) -> dict[str, int]:
    """Return the peaks of `diffalign` with these arguments, in a process of its own."""
    child = [sys.executable, "-c", "from scripts.prove_memory import watched; watched()", counting, *words]
    done = subprocess.run(child, check=False, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this script itself
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def estimate(words: list[str]) -> dict[str, float]:
    """Return what the dry run says, in bytes: of the step, and without a GPU of the whole process."""
    dry = [sys.executable, "-m", "diffalign.cli", *words, "--dry_run", "true"]
    text = subprocess.run(dry, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603  # diffalign itself
    print(text)
    unit = {"GiB": 2**30, "MiB": 2**20}
    patterns = {"step": r"together +([\d.]+) (GiB|MiB)", "resident": r"about ([\d.]+) (GiB|MiB) in all"}
    matches = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {name: float(match[1]) * unit[match[2]] for name, match in matches.items() if match}


def prove(case: str, work: Path, side: int, torch_holds: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Return the estimate and the peaks of a case in GiB, and how far the estimate lies above them, in percent."""
    words = command(case, work, side, options)
    expected = estimate(words)
    peaks = run(words, "process")
    if torch_holds:
        peaks |= {"torch": run(words, "torch")["torch"]}
    row: dict[str, Any] = {"case": case, "side": side, **{f"estimated {name}": value / 2**30 for name, value in expected.items()}}
    for name in ("resident", "GPU", "torch"):
        if name in peaks:
            row[f"peak {name}"] = peaks[name] / 2**30
    whole = ("resident", "resident") if "resident" in peaks else ("step", "GPU")
    row["off %"] = 100 * (expected[whole[0]] / peaks[whole[1]] - 1)
    return row


def main(
    cases: list[str],
    side: int = 512,
    torch_holds: bool = False,
    options: dict[str, Any] | None = None,
    root: str = "outputs/prove_memory",
    results: str | None = None,
) -> None:
    """Prove the estimates of some cases, and append a line each to the results.

    Args:
        cases: Names of CASES.
        side: Pixels.
        torch_holds: Also count what torch's allocator held on the CPU.
        options: Other keys of the training config.
        root: Folder of models and runs.
        results: File of the results, if not results.jsonl in the folder.
    """
    work = Path(root)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / f"pairs-{side}").exists():
        write_pairs(pairs := work / "pairs.parquet", side, RECORDS)
        diffalign(["data", "import", "--dataset_name", str(pairs), "--output_dir", str(work / f"pairs-{side}")])
    for case in cases:
        row = prove(case, work, side, torch_holds, options or {})
        with Path(results or work / "results.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}) + "\n")
        print(row)


if __name__ == "__main__":
    auto_cli(main)
