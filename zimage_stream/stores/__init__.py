"""Where encoded pictures are kept."""

from __future__ import annotations

from zimage_stream.settings import StoreSettings
from zimage_stream.stores.base import ImageStore, Put, StoredObject


def create_store(settings: StoreSettings, connections: int = 4) -> ImageStore:
    """The store that the settings name; nothing is asked of it yet.

    Args:
        connections: kept open, one for each thread that uses it.

    Raises:
        SettingsError: the endpoint or the prefix cannot be used.
    """
    if settings.kind == "directory":
        from zimage_stream.stores.directory import DirectoryStore

        return DirectoryStore(settings.path)
    from zimage_stream.stores.minio import MinioStore

    return MinioStore(settings, connections)


__all__ = ["ImageStore", "Put", "StoredObject", "create_store"]
