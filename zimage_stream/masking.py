"""Secrets, kept out of what is shown: settings, errors, logs, health. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

MASK = "********"

_SECRET = re.compile(
    r"pass(word|phrase|wd)|secret|token|credential|access_?key|pem$|ssl[._]key_?$|jaas"
    r"|oauthbearer\.config|private\.key|kinit\.cmd",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(url|uri|location|endpoint)$", re.IGNORECASE)
"""Where a secret is, not what it is."""
_USER_INFO = re.compile(r"://(?:(?!://)\S)*@")
"""Up to the last @ before the next URL: a password may hold any sign, whether or not that is allowed."""


def is_secret(name: str) -> bool:
    """Whether a setting, or an option of librdkafka, holds what nobody else should read."""
    return _SECRET.search(name) is not None and _ADDRESS.search(name) is None


def masked(text: str) -> str:
    """The text, without user names and passwords of URLs in it."""
    return _USER_INFO.sub(f"://{MASK}@", text)


def without_credentials(urls: str) -> tuple[str, str | None, str | None]:
    """A URL, or several with commas between them, without user and password; and these.

    Raises:
        ValueError: one is no URL of HTTP, or they name different users; it quotes none of them.
    """
    bare, found = [], set()
    for url in urls.split(","):
        scheme, separator, rest = url.strip().partition("://")
        user_info, at, address = rest.rpartition("@")
        try:
            parts = urlsplit(f"{scheme}://{address}")
            known = scheme.lower() in ("http", "https", "mock") and bool(parts.hostname)
            # Asked for, since it is read only then.
            known &= parts.port is None or parts.port > 0
        except ValueError:
            known = False
        if not separator or not known or "/" in user_info:
            raise ValueError(
                "takes http://HOST:PORT or https://HOST:PORT; in a user and a password / , and @ are written "
                "%2F, %2C and %40, or better given as username and password"
            )
        bare.append(f"{scheme}://{address}")
        if at:
            username, _, password = user_info.partition(":")
            found.add((unquote(username), unquote(password)))
    if len(found) > 1:
        raise ValueError("takes one user and password for all of them")
    username_and_password = found.pop() if found else (None, None)
    return ",".join(bare), *username_and_password
