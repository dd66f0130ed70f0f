"""The text fixtures by name, and small helpers to read and write such files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffalign.data.readers import READERS, read

if TYPE_CHECKING:
    from diffalign.data.records import Record

FIXTURES = Path(__file__).parent / "fixtures" / "text"
READER_OF = {
    "trl.jsonl": "trl",
    "trl_implicit.jsonl": "trl",
    "trl_messages.jsonl": "trl",
    "trl_messages_implicit.jsonl": "trl",
    "ultrafeedback.jsonl": "ultrafeedback",
    "hh_rlhf.jsonl": "hh_rlhf",
    "helpsteer2.jsonl": "helpsteer2",
    "helpsteer2_preference.jsonl": "helpsteer2",
    "pandalm.json": "pandalm",
    "pandalm_votes.csv": "pandalm",
    "llamafactory_sharegpt.json": "llamafactory",
    "llamafactory_v1.jsonl": "llamafactory",
    "llamafactory_alpaca.json": "llamafactory",
    "llamafactory_kto.json": "llamafactory",
    "llmbar.json": "llmbar",
}
PRIME = {"role": "user", "content": "Name a prime."}
SEVEN = {"role": "assistant", "content": "7"}
NINE = {"role": "assistant", "content": "9"}


def records(reader: str, path: Path) -> list[Record]:
    return list(read(READERS[reader], str(path)))


def fixture(name: str) -> list[Record]:
    return records(READER_OF[name], FIXTURES / name)


def raw(name: str) -> list[dict[str, Any]]:
    text = (FIXTURES / name).read_text(encoding="utf-8")
    if name.endswith(".csv"):
        return list(csv.DictReader(text.splitlines()))
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(reader: str, folder: Path, row: dict[str, Any]) -> Record:
    (record,) = records(reader, jsonl(folder / "one.jsonl", row))
    return record


def texts(record: Record) -> list[str | None]:
    return [candidate.text for candidate in record.candidates]


def turns(record: Record) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]
