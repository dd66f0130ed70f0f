"""Values of keys: the same text means the same in a file, as a flag and in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from diffalign.core.documents import read_yaml
from diffalign.core.errors import ConfigError
from diffalign.core.trust import Untrusted
from diffalign.core.values import key_value, word_value

SPEC = str | Mapping[str, Any]
KEPT = [
    (int, "8", 8),
    (int, 1000.0, 1000),
    (int, "010", 10),
    (int | None, "null", None),
    (float, 5, 5.0),
    (float | None, "1e-5", 1e-5),
    (bool, "Yes", True),
    (bool, "off", False),
    (bool, 0, False),
    (str, "no", "no"),
    (str, "~/votes", str(Path.home() / "votes")),
    (str, Path("votes"), "votes"),
    (str | None, "None", None),
    (Literal["no", "fp16"], "no", "no"),
    (Literal["a", "none"] | None, "none", "none"),
    (list[str], ("a", "b"), ["a", "b"]),
    (list[SPEC] | None, ["a", {"b": {"c": 1}}], ["a", {"b": {"c": 1}}]),
    (SPEC | None, None, None),
    (dict[str, str], {"gains": "hps"}, {"gains": "hps"}),
    (dict[str, Any], {"prompts": "~/p.txt"}, {"prompts": str(Path.home() / "p.txt")}),
]
REFUSED = [
    (int, "eight", "a whole number"),
    (int, True, "a whole number"),
    (int, 8.5, "a whole number"),
    (int, None, "a whole number"),
    (float, "nan", "a number"),
    (float, 1e400, "a number"),
    (bool, "maybe", "true or false"),
    (bool, 2, "true or false"),
    (str, 7, "'7'"),
    (Literal["lora", "full"], "Full", "`full`"),
    (Literal["a", "none"] | None, "None", "`none`"),
    (list[str], "a", "[a]"),
    (list[str], [1], "a list"),
    (dict[str, str], {"gains": 1}, "keys and values"),
    (SPEC, [], "{name: {constant: value}}"),
]


@pytest.mark.parametrize(("hint", "value", "result"), KEPT)
def test_a_value_is_taken_for_what_it_says(hint, value, result):
    typed = key_value("key", hint, value)
    assert typed == result
    assert type(typed) is type(result)


@pytest.mark.parametrize(("hint", "value", "expected"), REFUSED)
def test_a_value_of_another_type_is_refused_with_key_value_and_what_was_expected(hint, value, expected):
    with pytest.raises(ConfigError) as refusal:
        key_value("key", hint, value)
    assert [fact for fact in ("`key`", repr(value), expected) if fact not in str(refusal.value)] == []


def test_a_mapping_of_a_file_stays_marked_and_one_of_the_command_line_is_not(tmp_path):
    (tmp_path / "config.yaml").write_text("scorers: [{http: {url: 'http://host'}}]\n")
    values = read_yaml(tmp_path / "config.yaml")
    assert type(key_value("scorers", list[SPEC], values["scorers"])[0]) is Untrusted
    assert type(word_value("--objective", SPEC, "{http: {url: 'http://host'}}")) is dict
