"""The rules for keys and metadata, the same for all stores, so that objects can move between them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from zimage_stream.errors import StoreRejectedError, short_repr

MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
"""Maximum size of all metadata names and values together, in bytes; the limit of S3."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# Metadata are sent as HTTP headers, which lose leading and trailing spaces and non-ASCII characters.
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")


def checked_key(key: str) -> tuple[str, ...]:
    """Split a key into its parts, after checking that none leads outside the store.

    Raises:
        StoreRejectedError: a part is empty, starts with a dot, or holds a backslash, a control
            character or a lone surrogate; or the key is longer than 1,024 bytes.
    """
    parts = tuple(key.split("/"))
    if any(not part or part.startswith(".") for part in parts):
        raise StoreRejectedError(
            f"the key {short_repr(key)} is refused: a part is empty or starts with a dot"
        )
    if not key.replace(" ", "").isprintable() or "\\" in key:
        raise StoreRejectedError(
            f"the key {short_repr(key)} is refused: it may contain printable characters only, "
            "and no backslash"
        )
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StoreRejectedError(
            f"the key {short_repr(key)} is refused: it has more than {MAX_KEY_BYTES} bytes"
        )
    return parts


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Check metadata and convert their names to lower case.

    Raises:
        StoreRejectedError: a name does not consist of letters, digits and single hyphens; a value is empty,
            is not printable ASCII or has leading or trailing spaces; or the total exceeds 2,048 bytes.
    """
    lowered = {name.lower(): value for name, value in metadata.items()}
    for name, value in lowered.items():
        if not _NAME.fullmatch(name):
            raise StoreRejectedError(
                f"metadata {short_repr(name)} is refused: names take ASCII letters, digits and hyphens"
            )
        if not _VALUE.fullmatch(value):
            raise StoreRejectedError(
                f"metadata {name}: got {short_repr(value)}, takes printable ASCII without spaces at either "
                "end"
            )
    size = sum(len(name) + len(value) for name, value in lowered.items())
    if size > MAX_METADATA_BYTES:
        raise StoreRejectedError(f"metadata of {size:,} bytes are refused: at most {MAX_METADATA_BYTES:,}")
    return lowered
