"""The interface of image stores, in which each key is written at most once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in the store.

    ``size_bytes`` and ``metadata`` are as the store reports them, not as a writer intended them. Metadata
    names are in lower case, with ``-`` between words; values are ASCII.
    """

    key: str
    size_bytes: int
    content_type: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Put:
    """The outcome of a write: the object now in the store, and whether this write created it."""

    object: StoredObject
    created: bool


class ImageStore(Protocol):
    """A write-once store of images. Thread-safe.

    Every method raises StoreRejectedError for a key or metadata that break the rules in ``stores.rules``,
    StoreUnavailableError if the store does not answer, and StoreMisconfiguredError if it can store no object
    until an operator acts.
    """

    def check(self) -> None:
        """Raise unless objects can be stored: the bucket or folder exists, and supports write-once."""
        ...

    def create(self) -> None:
        """Create the bucket or folder if it does not exist."""
        ...

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        """Write an object unless the key already has one: the first writer wins, permanently.

        Args:
            metadata: if it contains ``sha256``, that must be the hash of the data in hex; an S3 store checks
                it.

        Raises:
            StoreRejectedError: the store refuses this object; others may be accepted.
        """
        ...

    def stat(self, key: str) -> StoredObject | None:
        """Return the object with a key, or ``None``."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises StoreError if the key has none."""
        ...

    def probe(self) -> None:
        """Write a small object under a separate key, and remove it if permitted.

        Raises as ``put``.
        """
        ...

    def uri(self, key: str) -> str:
        """Return the URI of a key: ``s3://bucket/key`` or ``file:///folder/key``."""
        ...

    @property
    def bucket(self) -> str:
        """Name of the bucket; ``""`` for a folder."""
        ...

    def close(self) -> None:
        """Release the connections."""
        ...
