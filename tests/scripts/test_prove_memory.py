"""The proof of a dry run's memory: what it reads of the dry run, and how it counts what torch holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scripts import prove_memory


def test_torch_holds_what_lies_there_at_once():
    def some():
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(250)
        return len(second) + len(third)

    before = torch.empty(10_000)  # which is there already, and goes in between

    def function():
        nonlocal before
        before = None
        return some()

    assert prove_memory.torch_peak(function) == (750, pytest.approx(4 * 1500, abs=200))


def test_the_estimate_is_compared_with_the_peak_of_the_process(monkeypatch, tmp_path):
    text = "base  1.00 GiB\ntogether        512.00 MiB\n\nIn main memory (1 MiB), the process (2 MiB now): about 1.50 GiB in all.\n"
    monkeypatch.setattr(prove_memory, "command", lambda *_: ["train"])
    monkeypatch.setattr(prove_memory.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))
    monkeypatch.setattr(prove_memory, "run", lambda words, counting: {"status": 0, "resident": 2**31, "torch": 2**30})
    row = prove_memory.prove("sd15_lora", tmp_path, 64, True, {})
    assert row["estimated step"] == 0.5
    assert row["peak torch"] == 1.0
    assert row["off %"] == pytest.approx(-25.0)
