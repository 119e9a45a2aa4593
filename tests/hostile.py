"""Text that harms a terminal that shows it unescaped."""

from __future__ import annotations

import re

HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that no command may print. Line breaks are allowed, since they end our own lines."""

FORGED = "zimage: all is well"
HOSTILE = f"\x1b]52;c;aGk=\x07[red]:star:[/red]\x9b31m\x7f\r\u202ecba\u2066\u2028\t\n{FORGED}\n\x00"


def assert_harmless(printed: bytes) -> str:
    """Assert that the output contains nothing harmful and no forged line, and return it as text."""
    text = printed.decode()
    found = HARMFUL.search(text)
    assert found is None, (found, text[max(0, found.start() - 80) :][:200])
    assert not any(line.startswith(FORGED) for line in text.splitlines())
    return text
