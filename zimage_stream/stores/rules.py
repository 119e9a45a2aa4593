"""What keys and metadata every store takes, so that what one of them keeps the other could keep too."""

from __future__ import annotations

import re
from collections.abc import Mapping

from zimage_stream.errors import StoreRejectedError, shorten

MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
"""Of names and values together; the limit of S3."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# Metadata travel in HTTP headers, which lose blanks at either end and everything beyond ASCII.
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")


def checked_key(key: str) -> tuple[str, ...]:
    """The parts of a key, none of which leads anywhere but down.

    Raises:
        StoreRejectedError: a part is empty, starts with a dot, or holds a backslash, a control
            character or a lone surrogate; or the key is longer than 1,024 bytes.
    """
    parts = tuple(key.split("/"))
    if any(not part or part.startswith(".") for part in parts):
        raise StoreRejectedError(f"the key {shorten(key)} is refused: a part is empty or starts with a dot")
    if not key.replace(" ", "").isprintable() or "\\" in key:
        raise StoreRejectedError(
            f"the key {shorten(key)} is refused: it takes printable characters, no backslash"
        )
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StoreRejectedError(f"the key {shorten(key)} is refused: it has more than {MAX_KEY_BYTES} bytes")
    return parts


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with lower-case names.

    Raises:
        StoreRejectedError: a name is not made of letters, digits and single hyphens, a value is empty,
            not printable ASCII or has blanks around it, or all of it is longer than 2,048 bytes.
    """
    said = {name.lower(): value for name, value in metadata.items()}
    for name, value in said.items():
        if not _NAME.fullmatch(name):
            raise StoreRejectedError(
                f"metadata {shorten(name)} is refused: names take ASCII letters, digits and hyphens"
            )
        if not _VALUE.fullmatch(value):
            raise StoreRejectedError(
                f"metadata {name}: got {shorten(value)}, takes printable ASCII without blanks around it"
            )
    size = sum(len(name) + len(value) for name, value in said.items())
    if size > MAX_METADATA_BYTES:
        raise StoreRejectedError(f"metadata of {size:,} bytes are refused: {MAX_METADATA_BYTES:,} at most")
    return said
