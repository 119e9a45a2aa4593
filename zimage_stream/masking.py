"""Masking of secrets in settings, errors, logs and health reports. Pure."""

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
"""Names of settings that hold the location of a secret, not the secret itself."""
_USER_INFO = re.compile(r"://(?:(?!://)\S)*@")
"""Matches up to the last @ before the next URL, because a password may contain any character, even an
illegal one."""


def is_secret(name: str) -> bool:
    """Whether a setting or a librdkafka option holds a secret, judging by its name."""
    return _SECRET.search(name) is not None and _ADDRESS.search(name) is None


def masked(text: str) -> str:
    """Replace user names and passwords in the URLs of a text."""
    return _USER_INFO.sub(f"://{MASK}@", text)


def without_credentials(urls: str) -> tuple[str, str | None, str | None]:
    """Split off the user and password of a URL, or of several URLs separated by commas.

    Returns:
        The URLs without credentials, the user and the password.

    Raises:
        ValueError: one is not an HTTP URL, or their credentials differ. The message quotes none of them.
    """
    bare, found = [], set()
    for url in urls.split(","):
        scheme, separator, rest = url.strip().partition("://")
        user_info, at, address = rest.rpartition("@")
        try:
            parts = urlsplit(f"{scheme}://{address}")
            known = scheme.lower() in ("http", "https", "mock") and bool(parts.hostname)
            # urlsplit validates the port only when it is accessed.
            known &= parts.port is None or parts.port > 0
        except ValueError:
            known = False
        if not separator or not known or "/" in user_info:
            raise ValueError(
                "takes http://HOST:PORT or https://HOST:PORT; in a user or password, write / , and @ as "
                "%2F, %2C and %40, or use the settings username and password instead"
            )
        bare.append(f"{scheme}://{address}")
        if at:
            username, _, password = user_info.partition(":")
            found.add((unquote(username), unquote(password)))
    if len(found) > 1:
        raise ValueError("takes one user and password for all of them")
    username_and_password = found.pop() if found else (None, None)
    return ",".join(bare), *username_and_password
