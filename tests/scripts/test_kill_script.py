"""The script that kills commands: nothing of them lives on, and what no two runs share is not compared."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from scripts import kill_test


def test_what_a_launcher_began_in_a_session_of_its_own_dies_too():
    script = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        worker = psutil.Process(int(launcher.stdout.readline()))
        kill_test.kill(psutil.Process(launcher.pid))
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_of_run_json_all_is_compared_but_times(tmp_path):
    for folder, steps, seconds in (("one", 3, 0.1), ("two", 3, 0.2), ("three", 4, 0.1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").write_text(json.dumps({"steps": steps, "step_seconds_median": seconds}))
    assert kill_test.differences(tmp_path / "one", tmp_path / "two") == []
    assert kill_test.differences(tmp_path / "one", tmp_path / "three") == ["run.json: not the same"]


def test_of_weights_all_is_compared_but_the_order_of_their_header(tmp_path):
    first, second = '"__metadata__":{"a":"1"}', '"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    for folder, header, value in (("one", (first, second), 7), ("two", (second, first), 7), ("three", (first, second), 8)):
        text = f"{{{','.join(header)}}}".encode()
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes([value]))
    assert kill_test.differences(tmp_path / "one", tmp_path / "two") == []
    assert kill_test.differences(tmp_path / "one", tmp_path / "three") == ["w.safetensors: not the same"]


def test_what_an_earlier_start_left_is_named(tmp_path, monkeypatch):
    (tmp_path / "kills.whole").mkdir()
    monkeypatch.setattr(sys, "argv", ["kill_test", "--folder", str(tmp_path / "kills"), "--", "true"])
    with pytest.raises(SystemExit, match=r"kills.whole: of an earlier start that ended early"):
        kill_test.main()
