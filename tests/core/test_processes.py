"""How the processes of a launch share what is missing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from diffalign.core import processes


@dataclass
class Process:
    """One of four processes, two on each of two machines; they are stepped by hand, so nobody waits."""

    process_index: int
    num_processes: int = 4

    @property
    def local_process_index(self) -> int:
        return self.process_index % 2

    def wait_for_everyone(self) -> None:
        pass


@pytest.mark.parametrize("same_disk", [True, False], ids=["one disk", "a disk each"])
def test_each_item_is_done_once_on_every_disk(monkeypatch, same_disk):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    disks = [set[int]()] * 2 if same_disk else [set[int](), set[int]()]
    done = [list[int](), list[int]()]
    work = []
    for index in range(4):
        disk = disks[index // 2]
        work.append(processes.shares(lambda disk=disk: [item for item in range(10) if item not in disk]))
    for _ in range(2):  # the first share of all, then the second
        own = []
        for index, shares in enumerate(work):
            monkeypatch.setattr(processes, "process_state", lambda index=index: Process(index))
            own.append(next(shares))
        for index, items in enumerate(own):
            disks[index // 2].update(items)
            done[index // 2] += items
    assert all(disk == set(range(10)) for disk in disks)
    assert sorted(done[0] + done[1]) == sorted(list(range(10)) * (1 if same_disk else 2))


@pytest.mark.parametrize("mark", ["Connection closed by peer [127.0.0.1]:2975", "NCCL error: ncclRemoteError: a remote process exited"])
def test_the_end_of_another_process_is_a_sentence_where_there_is_one(mark, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    sentence = processes.ended_elsewhere(RuntimeError(f"[pair.cc:561] {mark}"))
    assert sentence is not None
    assert sentence.startswith("another process of the launch has ended")
    assert processes.ended_elsewhere(RuntimeError("shapes differ")) is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes.ended_elsewhere(RuntimeError(mark)) is None


def test_what_the_first_process_cannot_do_is_an_error_of_all():
    assert processes.first_alone(lambda: "done") == "done"

    def full():
        raise RuntimeError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        processes.first_alone(full)
