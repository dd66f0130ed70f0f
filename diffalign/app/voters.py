"""Who is at the page: the user who is logged in, or a guest that the browser names by a secret of its own."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffalign.core.errors import ConfigError

Role = Literal["owner", "voter"]
SECRET = re.compile(r"[0-9a-f]{32}")  # what a guest's browser makes and keeps


class AccessError(Exception):
    """Somebody asked for what is not theirs; the message goes to the page."""


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may log in."""

    password: str = field(repr=False)
    role: Role


@dataclass(frozen=True, slots=True)
class Accounts:
    """All who may log in, by name; empty where the app asks nobody."""

    by_name: Mapping[str, Account] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Accounts:
        """Return the accounts of a JSON file. Raises ConfigError that names the file and the user."""
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"`auth`: {path} cannot be read ({error})") from error
        if not isinstance(entries, dict) or not entries:
            raise ConfigError(f'`auth`: {path} holds no users; expected {{"name": {{"password": "...", "role": "owner"}}}}')
        return cls({name: _account(path, name, entry) for name, entry in entries.items()})

    def admits(self, name: str, password: str) -> bool:
        """Return whether `password` is that of the user `name`."""
        account = self.by_name.get(name)
        expected = account.password if account else ""
        return hmac.compare_digest(expected.encode(), password.encode()) and account is not None

    def is_owner(self, name: str | None) -> bool:
        """Return whether the user `name` may train and delete; everybody may where nobody has to log in."""
        account = self.by_name.get(name or "")
        return not self.by_name or (account is not None and account.role == "owner")

    def voter(self, name: str | None, secret: object) -> str:
        """Return under which name somebody votes: the login, or one made of a guest's secret. Raises AccessError if there is neither."""
        if self.by_name:
            if name is None or name not in self.by_name:
                raise AccessError("log in to vote")
            return name
        if not isinstance(secret, str) or not SECRET.fullmatch(secret):
            raise AccessError("this browser keeps no local data, so it cannot be told from others; allow it, or open the app with --auth")
        return f"guest-{hashlib.sha256(secret.encode()).hexdigest()[:16]}"  # which others may see; the secret lets one vote as the guest


def _account(path: str | Path, name: str, entry: Any) -> Account:
    if not isinstance(entry, dict) or not isinstance(entry.get("password"), str) or len(entry["password"]) < 8:
        raise ConfigError(f"`auth`: {path}, user `{name}`: expected a password of at least 8 characters")
    if entry.get("role", "voter") not in ("owner", "voter"):
        raise ConfigError(f"`auth`: {path}, user `{name}`: the role is {entry['role']!r}; expected owner or voter")
    return Account(entry["password"], entry.get("role", "voter"))


def login_of(request: Any) -> str | None:
    """Return who is logged in, by a request of Gradio's events or, of functions that a page's script calls, of its web framework.

    The second kind does not carry the name, so that it is looked up by the session's cookie, as Gradio does for the first.
    """
    if hasattr(request, "username"):
        return request.username
    server = request.app
    cookies = (request.cookies.get(f"access-token-{unsecure}{server.cookie_id}") for unsecure in ("", "unsecure-"))
    return next((server.tokens[cookie] for cookie in cookies if cookie in server.tokens), None)
