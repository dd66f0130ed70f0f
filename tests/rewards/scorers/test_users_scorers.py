"""Scorers that a user brings: a Python function, or a server on the same machine."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.rewards.scorers import client
from diffalign.rewards.table import load_scorer
from tests.paths import TESTS

IMAGES = [Image.new("RGB", (4, 3), (red, 0, 0)) for red in (0, 100, 200)]
PROMPTS = ["a", "skip", "c"]


@pytest.mark.parametrize("path", ["tests.rewards.mine:redness", f"{TESTS / 'rewards' / 'mine.py'}:redness"])
def test_a_function_of_a_module_or_a_file_scores_under_its_own_name(path):
    scorer = load_scorer({"function": {"path": path}})
    np.testing.assert_array_equal(scorer(IMAGES, PROMPTS), [0.0, np.nan, 200.0])
    assert scorer.name == "redness"
    assert load_scorer({"function": {"path": path, "name": "red"}}).name == "red"


def test_a_function_that_is_not_there_or_does_not_give_a_number_an_image_is_refused():
    with pytest.raises(ConfigError, match=r"no function `rednes` in tests\.rewards\.mine"):
        load_scorer({"function": {"path": "tests.rewards.mine:rednes"}})
    with pytest.raises(ConfigError, match=r"nowhere\.py cannot be imported"):
        load_scorer({"function": {"path": "nowhere.py:score"}})
    with pytest.raises(ConfigError, match="expected module:function"):
        load_scorer({"function": {"path": "score"}})
    with pytest.raises(ConfigError, match=r"shape \(\) for 3 images"):
        load_scorer({"function": {"path": "tests.rewards.mine:one"}})(IMAGES, PROMPTS)


def greens(_, body):
    """Answer with the green of the first pixel plus the prompt's length; null where it has none."""
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in body["images"]]
    values = [image.getpixel((0, 0))[1] for image in images]
    scores = [green + len(prompt) if green else None for green, prompt in zip(values, body["prompts"], strict=True)]
    return 200, {}, json.dumps({"scores": scores}).encode(), 0


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_server_gets_whole_images_with_their_prompts_and_its_nulls_are_not_judged(server):
    url, _ = server(greens)
    scorer = load_scorer({"http": {"url": url, "name": "green"}})
    images = [Image.new("RGB", (5, 2), (0, green % 251, 0)) for green in range(40)]  # more than one request
    np.testing.assert_array_equal(scorer(images, ["abc"] * 40), [np.nan, *range(4, 43)])
    assert scorer.name == "green"


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_key_comes_from_the_environment_and_goes_where_the_address_wants_it(server, monkeypatch):
    url, requests = server(greens)
    with pytest.raises(ConfigError, match="DIFFALIGN_KEY_MY_GREEN"):
        load_scorer({"http": {"url": f"{url}/?k={{key}}", "name": "my-green"}})
    monkeypatch.setenv("DIFFALIGN_KEY_MY_GREEN", "sesame")
    for address in (url, f"{url}/?key={{key}}"):
        load_scorer({"http": {"url": address, "name": "my-green"}})(IMAGES, PROMPTS)
    load_scorer({"http": {"url": url, "name": "other"}})(IMAGES, PROMPTS)
    assert requests == [("/", "Bearer sesame"), ("/?key=sesame", None), ("/", None)]


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_failures_that_may_pass_are_asked_again(server):
    whole = json.dumps({"scores": [1, 2, 3]}).encode()
    passing = {name: (status, {}, b"", 0) for name, status in {"busy": 503, "overloaded": 529, "too many": 429}.items()}
    for name, bad in {"cut off": (200, {}, whole[:5], 10), **passing}.items():
        url, requests = server(lambda number, _, bad=bad: (200, {}, whole, 0) if number == 3 else bad)
        np.testing.assert_array_equal(load_scorer({"http": {"url": url, "name": "x"}})(IMAGES, PROMPTS), [1, 2, 3], err_msg=name)
        assert len(requests) == 3, name


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_images_are_shared_among_the_requests_at_once(server):
    url, requests = server(greens)
    scorer = load_scorer({"http": {"url": url, "name": "x", "concurrency": 2}})
    np.testing.assert_array_equal(scorer(IMAGES, PROMPTS), load_scorer({"http": {"url": url, "name": "x"}})(IMAGES, PROMPTS))
    assert len(requests) == 2 + 1


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_an_answer_that_comes_in_drops_is_late(server, monkeypatch):
    url, requests = server(greens)
    clock = itertools.count(0.0, 300.0)
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    with pytest.raises(ConfigError, match=r"gives no answer \(TimeoutError\)"):
        load_scorer({"http": {"url": url, "name": "x", "timeout": 299.0}})(IMAGES, PROMPTS)
    assert len(requests) == 1 + client.RETRIES


def test_an_error_ends_a_set_of_questions_and_ctrl_c_waits_for_none(monkeypatch):
    hangs, ended, begun, pause = threading.Event(), [], [], [0.02]

    def question(number):
        begun.append(number)
        if number == 0:
            raise ConfigError("down")
        hangs.wait(pause[0])
        ended.append(number)

    with pytest.raises(ConfigError, match="down"):
        client.in_parallel(question, range(1000), 2)
    assert len(begun) < 1000  # after the error no further one is begun
    assert set(ended) == set(begun) - {0}  # and those under way have ended
    ended.clear()
    pause[0] = 20.0

    def ctrl_c():
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "SimpleQueue", lambda: SimpleNamespace(put=ended.append, get=ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        client.in_parallel(question, [1, 2, 3], 2)
    assert not ended
    hangs.set()


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_other_answers_are_refused_and_nothing_of_them_is_shown(server):
    """A status is refused at once; what cannot be read is sent for again, and refused the third time."""
    inside, reached = server(greens)
    answers = {
        "redirect": ((302, {"Location": inside}, b"", 0), "302"),
        "redirect to ftp": ((307, {"Location": "ftp://127.0.0.1/a"}, b"", 0), "307"),
        "not found": ((404, {}, b"SECRET", 0), "404"),
        "no scores": ((200, {}, b'{"error": "SECRET"}', 0), "without `scores`"),
        "a list": ((200, {}, b"[1, 2, 3]", 0), "without `scores`"),
        "words": ((200, {}, b'{"scores": "SECRET"}', 0), "no list of numbers"),
        "lists": ((200, {}, b'{"scores": [[1], [2], [3]]}', 0), "no list of numbers"),
        "half": ((200, {}, b'{"scores": [1, 2', 0), "not JSON"),
        "too few": ((200, {}, b'{"scores": [1, 2]}', 0), "for 3 images"),
        "not a number": ((200, {}, b'{"scores": [1, NaN, 3]}', 0), "NaN"),
        "infinite": ((200, {}, b'{"scores": [1, 1e999, 3]}', 0), "64 bits"),
        "deep": ((200, {}, b"[" * 50_000, 0), "nested too deep"),
        "large": ((200, {}, b"1" * 1_000_001, 0), "1,000,000 bytes"),
    }
    for name, (answer, words) in answers.items():
        url, requests = server(lambda *_, answer=answer: answer)
        with pytest.raises(ConfigError) as caught:
            load_scorer({"http": {"url": url, "name": "x"}})(IMAGES, PROMPTS)
        assert words in str(caught.value), name
        assert url in str(caught.value), name
        assert "SECRET" not in str(caught.value), name
        assert len(requests) == (1 if "status" in str(caught.value) else client.READINGS), name
    assert not reached


def test_a_server_that_is_not_there_and_an_address_of_another_kind_are_refused(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionRefusedError("at http://127.0.0.1:1/?key=sesame")

    monkeypatch.setattr("requests.post", refuse)
    monkeypatch.setattr(client, "BACKOFF", 0.0)
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:1 gives no answer \(ConnectionRefusedError\)") as caught:
        load_scorer({"http": {"url": "http://127.0.0.1:1", "name": "x"}})(IMAGES, PROMPTS)
    assert "sesame" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected http:// or https://"):
        load_scorer({"http": {"url": "file:///etc/hosts", "name": "x"}})


def test_an_address_with_a_password_or_key_is_refused_without_showing_it():
    for url in ("http://me:sesame@host/", "https://host/?api_key=sesame", "ftp://me:sesame@host"):
        with pytest.raises(ConfigError) as caught:
            load_scorer({"http": {"url": url, "name": "x"}})
        assert "sesame" not in str(caught.value), url


def test_arguments_that_are_swapped_or_of_unequal_number_are_called_by_their_types():
    for scorer in (load_scorer("adherence"), load_scorer({"function": {"path": "tests.rewards.mine:redness"}})):
        for images, prompts, words in (
            (PROMPTS, IMAGES, "str"),
            (IMAGES[0], "a", "Image"),
            (IMAGES, "abc", "str"),
            (IMAGES, PROMPTS[:1], "3 images and 1 prompts"),
            (IMAGES, [1, 2, 3], "int"),
        ):
            with pytest.raises(ConfigError, match=words):
                scorer(images, prompts)


def test_a_function_that_fails_or_gives_infinity_is_named(tmp_path):
    file = tmp_path / "mine.py"
    for body, words in (("1 / 0", "ZeroDivisionError"), ("return [1, float('inf'), 2]", "inf for image 1")):
        file.write_text(f"def f(images, prompts):\n    {body}\n")
        with pytest.raises(ConfigError, match=words) as caught:
            load_scorer({"function": {"path": f"{file}:f"}})(IMAGES, PROMPTS)
        assert str(file) in str(caught.value)
    file.write_text("raise RuntimeError('at import')")
    with pytest.raises(ConfigError, match="at import"):
        load_scorer({"function": {"path": f"{file}:f"}})
