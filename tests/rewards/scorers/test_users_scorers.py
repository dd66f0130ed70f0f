"""Scorers that a user brings: a Python function, or a server on the same machine."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError
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


class Server(BaseHTTPRequestHandler):
    """Scores by the green of the first pixel; null where it has none."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in body["images"]]
        greens = [image.getpixel((0, 0))[1] for image in images]
        scores = [green + len(prompt) if green else None for green, prompt in zip(greens, body["prompts"], strict=True)]
        answer = json.dumps({"scores": scores} if self.path == "/score" else {"error": "no"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server():
    found = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_server_gets_whole_images_with_their_prompts_and_its_nulls_are_not_judged(server):
    scorer = load_scorer({"http": {"url": f"{server}/score", "name": "green"}})
    images = [Image.new("RGB", (5, 2), (0, green % 251, 0)) for green in range(40)]  # more than one request
    found = scorer(images, ["abc"] * 40)
    np.testing.assert_array_equal(found, [np.nan, *range(4, 43)])
    assert scorer.name == "green"
    with pytest.raises(ConfigError, match="answers without `scores`"):
        load_scorer({"http": {"url": f"{server}/other", "name": "green"}})(images, ["abc"] * 40)


def test_a_server_that_is_not_there_and_an_address_of_another_kind_are_refused(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:1 gives no answer \(refused\)"):
        load_scorer({"http": {"url": "http://127.0.0.1:1", "name": "x"}})(IMAGES, PROMPTS)
    with pytest.raises(ConfigError, match="expected http:// or https://"):
        load_scorer({"http": {"url": "file:///etc/hosts", "name": "x"}})
