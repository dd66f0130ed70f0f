# python -m scripts.kill_test --folder outputs/kills -- diffalign pairs generate --output_dir outputs/kills/ranked ...
"""Kill a command at random moments, run it again until it is done, and compare its files with those of an uninterrupted run.

The command writes into one folder, which may hold what it reads, and nothing that may change meanwhile. Every file there is compared
byte for byte, hidden ones too; but run.json less its times, and safetensors whatever the order of their headers. After so many kills in
a row that it is done, it starts anew, until it has been killed often enough.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil


def run(command: Sequence[str], log: Path, limit: float | None = None) -> float | None:
    """Run a command and return its seconds; None if it was killed, with all its children, at `limit`. Ends the script if it fails."""
    start = time.monotonic()
    with log.open("ab") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:  # noqa: S603  # ours
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            kill(psutil.Process(process.pid))
            return None
    if code != 0:
        sys.exit(f"{' '.join(command)}: exit code {code}\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
    return time.monotonic() - start


def kill(process: psutil.Process) -> None:
    """Kill a process and all below it, and wait for their ends; those, too, that a launcher has put into sessions of their own."""
    process.suspend()  # so that it begins no more
    with_it = [process, *process.children(recursive=True)]
    for one in with_it:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(with_it)


def contents(file: Path) -> bytes:
    """Return what a file holds, but for what no two runs share: how long the steps of run.json took, the order of safetensors' header."""
    if file.suffix == ".safetensors":
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
    if file.name != "run.json":
        return file.read_bytes()
    known = json.loads(file.read_text(encoding="utf-8"))
    return json.dumps({name: value for name, value in known.items() if name not in ("step_seconds_median", "turn_seconds")}).encode()


def differences(folder: Path, other: Path) -> list[str]:
    """Return the files of two folders that are not in both, or not the same."""
    files, others = ({str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()} for root in (folder, other))
    odd = [f"{name}: only in {'this run' if name in files else 'the uninterrupted run'}" for name in sorted(files.keys() ^ others.keys())]
    both = sorted(files.keys() & others.keys())
    return odd + [f"{name}: not the same" for name in both if contents(files[name]) != contents(others[name])]


def restore(folder: Path, kept: Path) -> None:
    """Put `folder` back as it was when `kept` was copied of it."""
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


def main() -> None:
    """Run the command once, then until it has been killed often enough; exit code 1 where files differ."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kill_test", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the command writes; it is put back as it was for every start")
    parser.add_argument("--kills", type=int, default=10, help="how many there are; each at a random moment of the uninterrupted run's time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("command", nargs="+", help="the command, after --")
    told = parser.parse_args()
    folder, rng = told.folder.resolve(), np.random.default_rng(told.seed)
    folder.mkdir(parents=True, exist_ok=True)
    before, whole, log = (folder.with_name(f"{folder.name}{end}") for end in (".before", ".whole", ".log"))
    for left in (before, whole):
        if left.exists():
            sys.exit(f"{left}: of an earlier start that ended early (.before holds what {folder} was, .whole what it became); remove it")
    shutil.copytree(folder, before)
    took = run(told.command, log) or 0.0
    shutil.copytree(folder, whole)
    print(f"uninterrupted: {took:.1f} s, {len(differences(before, whole))} files", flush=True)
    killed = done = bad = 0
    restore(folder, before)
    while killed < told.kills or done < killed:
        moment = float(rng.uniform(0.0, took)) if killed < told.kills else None
        if run(told.command, log, moment) is None:
            killed += 1
            print(f"kill {killed}: after {moment:.1f} s", flush=True)
            continue
        done = killed
        found = differences(folder, whole)
        bad += bool(found)
        print(f"done after {killed} kills: {'the same files' if not found else '; '.join(found)}", flush=True)
        restore(folder, before)
    for left in (before, whole):
        shutil.rmtree(left)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
