"""Processes of their own. They are forked from one that has imported the libraries, so that they begin in a moment."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["tests.libraries"]
SERVER.set_forkserver_preload(PRELOADED)
LEARNT = ("pytorch_lora_weights.safetensors", "ip_adapter.safetensors", "user_encoder.safetensors")
PATIENCE = 600  # seconds


def start(log: Path, function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Return a process that calls `function`, of a module's top level; what it prints goes to the file `log`."""
    process = SERVER.Process(target=_logged, args=(log, function, arguments))
    process.start()
    return process


def apart(log: Path, function: Callable[..., Any], *arguments: Any) -> None:
    """Call `function` in a process of its own and wait for it."""
    _finish([start(log, function, *arguments)], [log])


def command_line(words: Sequence[str]) -> None:
    """Run `diffalign` with `words` as the process's whole life, on one thread."""
    import torch

    from diffalign.cli.main import main

    torch.set_num_threads(1)
    raise SystemExit(main(list(words)))


def launch(folder: Path, jobs: Iterable[Mapping[str, Any] | Sequence[str]]) -> None:
    """Do all jobs in two processes of one launch: the settings of a run, or a command line. Their logs are left in `folder`.

    With "spread" among its settings, a run is as under `accelerate launch --use_fsdp --fsdp_version 2`. Rounds come last, for the
    processes part after them.
    """
    logs = [folder / f"process-{rank}.log" for rank in range(2)]
    _finish([start(log, _launched, rank, folder, list(jobs)) for rank, log in enumerate(logs)], logs)


def weights(output_dir: Path) -> dict[str, Tensor]:
    """Return what a run has learnt."""
    return {name: value for file in LEARNT if (output_dir / file).exists() for name, value in load_file(output_dir / file).items()}


def _logged(log: Path, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    gc.freeze()
    gc.enable()
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    function(*arguments)


def _finish(processes: Sequence[BaseProcess], logs: Sequence[Path]) -> None:
    """Wait for all processes; where one fails, end the others, which may wait for it."""
    waiting = {process.sentinel: (process, log) for process, log in zip(processes, logs, strict=True)}
    try:
        while waiting:
            ended = connection.wait(list(waiting), PATIENCE)
            assert ended, f"not done after {PATIENCE} seconds: {logs}"
            for sentinel in ended:
                process, log = waiting.pop(sentinel)  # pyright: ignore[reportArgumentType]
                process.join()
                assert process.exitcode == 0, log.read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()


def _launched(rank: int, folder: Path, jobs: Sequence[Mapping[str, Any] | Sequence[str]]) -> None:
    """Be one of two processes, as a launcher starts them; they find each other by a file, for a port might be taken."""
    import torch

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)

    from diffalign.cli.main import main
    from diffalign.methods.config import TrainConfig
    from diffalign.train import align, rounds

    for job in jobs:
        if isinstance(job, Mapping):
            config = TrainConfig(**{key: value for key, value in job.items() if key != "spread"})
            os.environ |= {"ACCELERATE_USE_FSDP": str("spread" in job).lower(), "FSDP_VERSION": "2"}
            (rounds.train if config.generate else align.run)(config)
        else:
            assert main(list(job)) == 0, job
