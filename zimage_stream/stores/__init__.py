"""Image stores: where encoded images are kept."""

from __future__ import annotations

from zimage_stream.settings import StoreSettings
from zimage_stream.stores.base import ImageStore, Put, StoredObject


def create_store(settings: StoreSettings, connections: int = 4) -> ImageStore:
    """Create the store that the settings name, without contacting it.

    Args:
        connections: number of connections kept open, one for each thread that uses the store.

    Raises:
        SettingsError: the endpoint or the prefix is invalid.
    """
    if settings.kind == "directory":
        from zimage_stream.stores.directory import DirectoryStore

        return DirectoryStore(settings.path)
    from zimage_stream.stores.minio import MinioStore

    return MinioStore(settings, connections)


__all__ = ["ImageStore", "Put", "StoredObject", "create_store"]
