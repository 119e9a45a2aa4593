"""Secrets, kept out of what is shown: settings, errors, logs, health. Pure."""

from __future__ import annotations

import re

MASK = "********"

_SECRET = re.compile(
    r"pass(word|phrase|wd)|secret|token|credential|access_?key|pem$|ssl[._]key_?$|jaas"
    r"|oauthbearer\.config|kinit\.cmd",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(url|uri|file|location|endpoint)$", re.IGNORECASE)
"""Where a secret is, not what it is."""
_USER_INFO = re.compile(r"://(?:(?!://)\S)*@")
"""Up to the last @ before the next URL: a password may hold any sign, whether or not that is allowed."""


def is_secret(name: str) -> bool:
    """Whether a setting, or an option of librdkafka, holds what nobody else should read."""
    return _SECRET.search(name) is not None and _ADDRESS.search(name) is None


def masked(text: str) -> str:
    """The text, without user names and passwords of URLs in it."""
    return _USER_INFO.sub(f"://{MASK}@", text)
