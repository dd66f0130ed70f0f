"""What `diffalign app` refuses to serve, what it warns of, and what stands before its pages."""

from __future__ import annotations

import contextlib
import json

import pytest

from diffalign.app import build
from diffalign.app.limits import RequestLimits
from diffalign.app.options import AppConfig
from diffalign.core.errors import ConfigError


@pytest.fixture
def launched(monkeypatch):
    """Return the arguments with which Gradio is started, instead of a server."""
    arguments = {}

    class Blocks:
        def launch(self, **given):
            arguments.update(given)
            return None, "http://127.0.0.1:1", None

        def block_thread(self):
            pass

    monkeypatch.setattr(build, "build", lambda config: Blocks())
    monkeypatch.setattr(build, "at_work", lambda config: contextlib.nullcontext())
    return arguments


def test_an_app_that_is_shared_needs_logins_and_warns_of_who_sees_it(launched, tmp_path, caplog):
    with pytest.raises(ConfigError, match="auth"):
        build.serve(AppConfig(share=True))
    assert launched == {}
    (tmp_path / "users.json").write_text(json.dumps({"ada": {"password": "correct horse", "role": "owner"}}))
    build.serve(AppConfig(share=True, auth=str(tmp_path / "users.json")))
    assert "--share" in caplog.text
    assert launched["auth"]("ada", "correct horse")
    assert not launched["auth"]("ada", "another horse")


def test_an_open_app_beyond_this_machine_is_warned_of(launched, caplog):
    build.serve(AppConfig())
    assert "--auth" not in caplog.text
    build.serve(AppConfig(server_name="0.0.0.0"))
    assert "--auth" in caplog.text


def test_large_requests_are_refused_before_the_pages(launched):
    build.serve(AppConfig())
    assert [middleware.cls for middleware in launched["app_kwargs"]["middleware"]] == [RequestLimits]
    assert launched["max_file_size"] == build.BYTES
