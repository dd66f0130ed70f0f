"""JSON and YAML from strangers are read strictly, or refused in one sentence that names the file."""

from __future__ import annotations

import pytest

from diffalign.core.documents import parse_json, read_json, read_mapping, read_yaml, yaml_of
from diffalign.core.errors import ConfigError, TableError, did_you_mean
from diffalign.core.redaction import has_secret, redacted
from diffalign.core.trust import Untrusted, is_untrusted, reaching, refuse, trusted, untrusted

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
BAD_YAML = {
    "aliases that multiply": BOMB,
    "merges that multiply": MERGES,
    "an alias of itself": "a: &a [*a]",
    "deep lists": "a: " + "[" * 50_000,
    "deep mappings": "a: " + "{b: " * 50_000,
    "deep blocks": "\n".join(" " * level + "a:" for level in range(2_000)),
    "a python tag": "a: !!python/object/apply:os.system [ls]",
    "a list": "- a",
    "a word": "a",
    "a key twice": "a: 1\na: 2",
    "a list as a key": "? [a]\n: b",
    "a huge number": "a: " + "9" * 5_000,
    "a number beyond 64 bits": "a: 99999999999999999999",
    "a control character": "a: \x00",
    "half a character": 'a: "\\ud800"',
    "an open quote": "a: 'b",
    "no unicode": b"a: \xff\xfe\xff",
    "too large": "a: " + "x" * 1_000_001,
}
BAD_JSON = {
    "deep lists": "[" * 50_000,
    "deep objects": '{"a":' * 50_000,
    "deep and whole": "[" * 500 + "]" * 500,
    "not a number": '{"a": NaN}',
    "infinite": '{"a": -Infinity}',
    "beyond a float": '{"a": 1e999}',
    "a huge number": '{"a": ' + "9" * 5_000 + "}",
    "a number beyond 64 bits": '{"a": 99999999999999999999}',
    "a key twice": '{"a": 1, "a": 2}',
    "half a character": '{"a": "\\ud800"}',
    "cut off": '{"a": ',
    "empty": "",
    "no unicode": b'{"a": "\xff\xfe\xff"}',
}


def _message(read, path, content, error):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as caught:
        read(path)
    return str(caught.value)


def test_bad_yaml_is_refused_in_a_sentence_that_names_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    for name, text in BAD_YAML.items():
        message = _message(read_yaml, file, text, ConfigError)
        assert str(file) in message, name
        assert len(message) < 700, name
        assert "\n" not in message, name


def test_bad_json_is_refused_in_a_sentence_that_names_the_file(tmp_path):
    file = tmp_path / "run.json"
    for name, text in BAD_JSON.items():
        message = _message(lambda path: read_json(path, TableError), file, text, TableError)
        assert str(file) in message, name
        assert len(message) < 700, name
    assert "list" in _message(read_mapping, file, "[1]", ConfigError)
    with pytest.raises(TableError, match="missing"):
        read_json(tmp_path / "missing", TableError)


def test_yaml_reads_numbers_words_and_dates_as_yaml_1_2(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("rate: 1e-5\nvae: off\nno: true\nday: 2001-99-99\nbase: &b {x: 1}\nmore: {<<: *b, y: .inf}\nempty:\n")
    assert read_yaml(file) == {
        "rate": 1e-5,
        "vae": "off",
        "no": True,
        "day": "2001-99-99",
        "base": {"x": 1},
        "more": {"x": 1, "y": float("inf")},
        "empty": None,
    }
    file.write_text(yaml_of(read_yaml(file)))
    assert read_yaml(file)["rate"] == 1e-5
    file.write_text("")
    assert read_yaml(file) == {}


def test_what_was_read_from_a_file_is_untrusted_at_any_depth_until_the_user_says_so(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("eval_reward: {trained: {path: x, more: [{function: {path: evil.py:f}}]}}")
    text = '{"specs": {"mine": {"http": {"url": "http://me:word@host/?key=abc"}}}}'
    for value in (read_yaml(file), parse_json(text, "a"), untrusted({"a": {"http": {"url": "x"}}})):
        with pytest.raises(ConfigError, match="--trust_scorers") as caught:
            refuse([value])
        assert "word" not in str(caught.value)
        assert not is_untrusted(trusted(value))
        refuse(trusted(value))
    named = {"function": {"path": "mine.py:f"}}
    assert not any(map(is_untrusted, reaching(untrusted({"scorers": [named]}, but=[named]))))
    refuse(read_yaml(file) | {"eval_reward": named})
    refuse(Untrusted({"taste": {"name": "high"}}))


def test_passwords_and_keys_in_addresses_are_hidden():
    for url in (
        "https://me:word@host/a",
        "http://word@host",
        "http://me:w@word@host",
        "https://host/a?key=word",
        "https://host/a?x=1&api_key=word&y=2",
        "https://host/a?access_token=word#b",
        "https://host/?X-Amz-Signature=word",
        "https://host/?PASSWORD=word",
        "https://host/#token=word",
    ):
        assert has_secret(url), url
        assert "word" not in redacted(f"cannot reach {url}, which is down"), url
        assert "host" in redacted(url), url
    for text in ("https://host/a?size=2", "mail me@host", "a red star = key", "http://host/keys", "a key=value pair"):
        assert redacted(text) == text
    assert redacted(Untrusted(a=[("http://u:p@h", 1)])) == {"a": [("http://***@h", 1)]}


def test_a_message_lists_no_more_names_than_can_be_read():
    message = did_you_mean("x", (f"column {n}" for n in range(200_000)))
    assert "199,970 others" in message
    assert len(message) < 1_000
    assert len(did_you_mean("x" * 10**6, ["y" * 10**6])) < 1_000
