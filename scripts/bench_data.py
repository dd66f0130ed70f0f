"""How importing, opening, looking through and beginning to train on a table grow with its rows, each in a process of its own.

    python -m scripts.bench_data --rows "[1000,10000,100000]" --folder bench_data

The rows are pairs of Pick-a-Pic's columns, labelled, whose pictures are a few small JPEG files. CPU seconds are of the process that does
the work, without imports of libraries; memory is the most that was neither of a file nor shared (RssAnon), less what libraries take.
"""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import auto_cli
from PIL import Image

MB, GROUP, PICTURES, PROMPTS, USERS = 2**20, 1000, 64, 17, 300
STEPS, BATCH = 100_000, 8  # of the run whose first batch is taken
CHAIN = ("pairs", "drop_ties", "orient")


def bench_data(
    rows: tuple[int, ...] = (1000, 10_000),
    folder: str = "bench_data",
    side: int = 32,
    num_proc: int = 1,
    skip: tuple[str, ...] = (),
    stage: str = "",
) -> None:
    """Print a table with a line for each number of rows, and write `bench_data.json` into the folder.

    Args:
        rows: pairs of each table.
        folder: where files and tables are written; removed at the end, but for the result.
        side: pixels of a picture.
        num_proc: processes that parse and check rows while a table is imported.
        skip: stages that are left out.
        stage: what this process does, one of the stages; all of them, in processes of their own, if it is empty.
    """
    root = Path(folder)
    if stage:
        print(json.dumps(_measured(STAGES[stage], root / f"{rows[0]}", num_proc)))
        return
    results = []
    for count in rows:
        own = root / f"{count}"
        own.mkdir(parents=True, exist_ok=True)
        _write_source(own / "pairs.parquet", count, side)
        results.append(_all_stages(own, count, num_proc, skip))
        print(_line(results[-1]), flush=True)
        shutil.rmtree(own)
    facts = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "command": sys.argv,
        "rows": results,
    }
    (root / "bench_data.json").write_text(json.dumps(facts, indent=2) + "\n")


def _all_stages(own: Path, count: int, num_proc: int, skip: Sequence[str]) -> dict[str, Any]:
    """Return what each stage took, in a process of its own."""
    measured: dict[str, Any] = {"rows": count, "source_mb": (own / "pairs.parquet").stat().st_size / MB}
    for name in (one for one in STAGES if one not in skip):
        flags = ["--rows", f"[{count}]", "--folder", str(own.parent), "--num_proc", str(num_proc), "--stage", name]
        answer = subprocess.run([sys.executable, "-m", "scripts.bench_data", *flags], check=True, capture_output=True, text=True)  # noqa: S603  # our own
        measured |= {f"{name}_{key}": value for key, value in json.loads(answer.stdout.splitlines()[-1]).items()}
    return measured


def _line(measured: dict[str, Any]) -> str:
    """Return a row of a Markdown table: CPU seconds and MB of each stage; of the import rows a CPU second, too."""
    cells = [f"{measured['rows']:,}", f"{measured['rows'] / measured['import_cpu_s']:,.0f}"]
    cells += [f"{measured[f'{name}_cpu_s']:.2f} s, {measured[f'{name}_mb']:.0f} MB" if f"{name}_mb" in measured else "" for name in STAGES]
    return f"| {' | '.join(cells)} |"


def _write_source(file: Path, count: int, side: int) -> None:
    """Write a parquet file of pairs, in row groups of `GROUP`."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8)).resize((side, side)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    schema = pa.schema(
        [("caption", pa.string()), ("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.float64()), ("user_id", pa.int64())]
    )
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, count, GROUP):
            numbers = range(start, min(start + GROUP, count))
            columns = {
                "caption": [f"a picture of the thing with number {n // PROMPTS}" for n in numbers],
                "jpg_0": [pictures[n % PICTURES] for n in numbers],
                "jpg_1": [pictures[(7 * n + 3) % PICTURES] for n in numbers],
                "label_0": [(0.0, 1.0, 0.5)[n % 3] for n in numbers],
                "user_id": [n % USERS for n in numbers],
            }
            writer.write_table(pa.table(columns, schema=schema))


def _measured(work: Callable[[Path, int], Callable[[], Any]], folder: Path, num_proc: int) -> dict[str, float]:
    """Return CPU and wall seconds, and MB at the peak, of what `work` prepares and returns."""
    ready = work(folder, num_proc)
    base, peak, done = _anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu, wall = time.process_time(), time.perf_counter()
    kept = ready()
    facts = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    done.set()
    watcher.join()
    peak[0] = max(peak[0], _anonymous())
    del kept
    return facts | {"mb": peak[0] - base}


def _anonymous() -> float:
    """Return the MB of this process that are not of files."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def _import(folder: Path, num_proc: int) -> Callable[[], Any]:
    from diffalign.data.importing import import_dataset
    from diffalign.data.readers.detect import detect

    detect(str(folder / "pairs.parquet"))  # so that libraries are there
    return lambda: import_dataset(str(folder / "pairs.parquet"), folder / "table", overwrite=True, num_proc=num_proc)


def _open(folder: Path, num_proc: int) -> Callable[[], Any]:  # noqa: ARG001  # as other stages
    from diffalign.data.transforms import TRANSFORMS
    from diffalign.data.view import View

    return _warm(folder, lambda table: View(table, [TRANSFORMS[name] for name in CHAIN]))


def _first_batch(folder: Path, num_proc: int) -> Callable[[], Any]:
    """Prepare the first batch of a run of a hundred thousand steps, with encoders that do nothing; opening is counted, too."""
    import torch

    from diffalign.data.batch import Encoders, LivePairs
    from diffalign.data.pixels import Framing
    from diffalign.data.sampler import Sampler, loader

    opened = _open(folder, num_proc)

    def shape(height: int, width: int) -> tuple[int, int, int]:
        return 4, height // 8, width // 8

    encoders = Encoders(lambda _, noise: noise, lambda prompts: {"prompt": torch.zeros(len(prompts), 1)}, shape, "none")

    def work() -> Any:
        pairs = LivePairs(opened(), encoders, Framing(32), 1)
        return pairs, next(iter(loader(pairs, Sampler(len(pairs), BATCH, 1, 1, 0, 0), 0, STEPS)))

    return work


def _inspect(folder: Path, num_proc: int) -> Callable[[], Any]:  # noqa: ARG001  # as other stages
    from diffalign.data.inspect import summary

    return _warm(folder, summary)


def _validate(folder: Path, num_proc: int) -> Callable[[], Any]:  # noqa: ARG001  # as other stages
    from diffalign.data.problems import validate

    return _warm(folder, validate)


def _warm(folder: Path, work: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return `work` on the table in the folder, once what it imports is there: it is done with the first row alone before."""
    from diffalign.data.table import read_table, write_table

    table = read_table(folder / "table")
    work(write_table(folder / "one_row", table[:1], overwrite=True))
    return lambda: work(read_table(folder / "table"))


STAGES = {"import": _import, "open": _open, "first_batch": _first_batch, "inspect": _inspect, "validate": _validate}

if __name__ == "__main__":
    auto_cli(bench_data)
