"""Where encoded pictures are kept: written once, found again by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that is in the store.

    ``size_bytes`` and ``metadata`` are what the store says, not what a writer meant; metadata
    names are lower case, with ``-`` between words, and values are ASCII.
    """

    key: str
    size_bytes: int
    content_type: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Put:
    """Outcome of a write: what is in the store now, and whether this write put it there."""

    object: StoredObject
    created: bool


class ImageStore(Protocol):
    """Thread-safe. Keys and metadata are taken as ``stores.rules`` has them; others raise StoreRejectedError.

    Every method raises StoreUnavailableError where the store does not answer, and
    StoreMisconfiguredError where no object could be stored until an operator acts.
    """

    def check(self) -> None:
        """Raise unless objects can be stored: the bucket or folder is there and may be written once."""
        ...

    def create(self) -> None:
        """Make the bucket or folder if it is not there."""
        ...

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        """Write an object unless the key is taken; the first writer wins, for ever.

        Args:
            metadata: a ``sha256`` in it is that of the data, in hex; an S3 store checks it.

        Raises:
            StoreRejectedError: the store refuses this object; others may pass.
        """
        ...

    def stat(self, key: str) -> StoredObject | None:
        """What is under the key, or ``None``."""
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises StoreError where there is none."""
        ...

    def probe(self) -> None:
        """Write a small object under a key of its own and take it away again, where that is allowed.

        Raises as ``put`` does.
        """
        ...

    def uri(self, key: str) -> str:
        """``s3://bucket/key`` or ``file:///folder/key``."""
        ...

    @property
    def bucket(self) -> str:
        """Name of the bucket, ``""`` for a folder."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
