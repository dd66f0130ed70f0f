"""The command line without torch: what is refused there is refused before torch, which takes seconds to import.

One process imports all but torch once, and every command line runs in a fork of it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

# Torch counts as missing, so whoever imports it fails.
FORKS = """
import json, os, sys, tempfile
sys.modules["torch"] = None
import diffalign.cli.parser, diffalign.data.importing, diffalign.methods.checks
from diffalign.cli.main import main

for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as file:
        if not (pid := os.fork()):
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            sys.exit(main(json.loads(line)))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        file.seek(0)
        print(json.dumps([status, file.read()]), flush=True)
"""
Refused = Callable[..., str]


@contextlib.contextmanager
def refusals() -> Iterator[Refused]:
    """Give a function that returns the one line that the command line refuses its arguments with."""
    with subprocess.Popen([sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        words, answers = process.stdin, process.stdout
        assert words is not None
        assert answers is not None

        def refused(*arguments: object) -> str:
            words.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            words.flush()
            status, printed = json.loads(answers.readline())
            lines = [line for line in printed.splitlines() if line.startswith("diffalign") and "error:" in line]
            assert (status, len(lines)) == (2, 1), printed
            assert "Traceback" not in printed
            return lines[0]

        yield refused
