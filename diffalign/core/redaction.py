"""Passwords and keys within addresses, which are never written or shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# Names of a query's values that are secrets: key, api_key, X-Amz-Signature, accessToken, ...
FIELD = r"[\w.\-]*?(?:key|token|secret|passw(?:or)?d|pwd|signature|credentials?|auth|sig|sas)"
USER = re.compile(r"(?<=://)[^/?#\s@\"']*(?:@[^/?#\s@\"']*)*(?=@)")
VALUE = re.compile(rf"(?i)(?<=[?&;#])({FIELD})=([^&;#\s\"'<>]+)")


def redacted(value: Any) -> Any:
    """Return `value` with `***` for user, password and keys of the addresses in its texts, at any depth.

    >>> redacted("https://me:word@host/score?api_key=abc&size=2")
    'https://***@host/score?api_key=***&size=2'
    """
    if isinstance(value, str):
        return VALUE.sub(rf"\1={HIDDEN}", USER.sub(HIDDEN, value))
    if isinstance(value, Mapping):
        return type(value)({name: redacted(inner) for name, inner in value.items()})  # pyright: ignore[reportCallIssue]  # dicts, in fact
    return type(value)(map(redacted, value)) if isinstance(value, list | tuple) else value


def has_secret(url: str) -> bool:
    """Return whether an address has a user, a password or a key in it."""
    return redacted(url) != url
