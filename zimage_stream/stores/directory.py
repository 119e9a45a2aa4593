"""A folder as an image store, for one machine and for the demo."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from zimage_stream.errors import (
    StoreError,
    StoreMisconfiguredError,
    StoreRejectedError,
    StoreUnavailableError,
)
from zimage_stream.stores.base import Put, StoredObject
from zimage_stream.stores.rules import checked_key, checked_metadata

ROUNDS = 5
"""Maximum number of attempts of a write that keeps colliding with other writers and removers."""

_METADATA, _INCOMING = ".metadata", ".incoming"
_STALE_S = 3_600.0
_MISCONFIGURED = {
    errno.EACCES: "access is refused",
    errno.EDQUOT: "the quota is used up",
    errno.ENOENT: "the folder does not exist",
    errno.ENOSPC: "the disk is full",
    errno.ENOTDIR: "it is not a folder",
    errno.EOPNOTSUPP: "its file system has no hard links",
    errno.EPERM: "access is refused, or its file system has no hard links",
    errno.EROFS: "the file system is read-only",
}
_REJECTED = {
    errno.EISDIR: "the key is a folder of other objects",
    errno.ENAMETOOLONG: "a part of the key is too long for this file system",
    errno.ENOTDIR: "a part of the key is another object",
}


class DirectoryStore:
    """Stores objects as files named by their keys, and their metadata under ``.metadata``.

    An object is written completely under ``.incoming`` and then hard-linked to its final path. Linking fails
    if that path exists, so the first writer wins. The metadata file is written before the link, and named by
    key and inode. A link keeps the inode, so with two concurrent writers each metadata file describes its own
    bytes, whichever wins, and an object is never visible without metadata. After the link the metadata file
    is renamed to the key alone, so that a copy of the folder, which has other inodes, is a valid store too.
    After a crash at any point, the next writer can continue.
    """

    bucket = ""

    def __init__(self, path: Path) -> None:
        self._root = path.absolute()

    def check(self) -> None:
        self._check_root()
        self._remove_stale()
        self.probe()

    def _remove_stale(self) -> None:
        """Remove files staged by writers that were killed; recent ones may belong to a running process."""
        for file in (self._root / _INCOMING).glob("*"):
            # Another process may remove it at the same time.
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_S:
                    file.unlink(missing_ok=True)

    def create(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._raise(error, "the folder")

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        path, checked = self._path(key), checked_metadata(metadata)
        self._check_root()
        try:
            for _ in range(ROUNDS):
                existing = self.stat(key)
                if existing is not None:
                    return Put(existing, created=False)
                if self._write(path, data, {"content_type": content_type, "metadata": checked}):
                    return Put(StoredObject(key, len(data), content_type, checked), created=True)
        except OSError as error:
            self._raise(error, key)
        raise StoreUnavailableError(f"other processes keep writing and removing {key}")

    def stat(self, key: str) -> StoredObject | None:
        path = self._path(key)
        self._check_root()
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                return None
            description = self._description(path, found.st_ino)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._raise(error, key)
        return StoredObject(key, found.st_size, description["content_type"], description["metadata"])

    def get(self, key: str) -> bytes:
        path = self._path(key)
        self._check_root()
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise StoreError(f"there is no object {key} in {self._root}") from None
        except OSError as error:
            self._raise(error, key)

    def probe(self) -> None:
        self._check_root()
        try:
            with self._staged(b"probe") as file:
                linked = file.with_name(f"{file.name}.linked")
                os.link(file, linked)
                linked.unlink()
        except OSError as error:
            self._raise(error, "a probe")

    def uri(self, key: str) -> str:
        return self._path(key).as_uri()

    def close(self) -> None:
        pass

    def _path(self, key: str) -> Path:
        """Return the path of a key's object, inside the folder and outside the store's internal folders."""
        path = self._root.joinpath(*checked_key(key))
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._root)):
            raise StoreRejectedError(f"the key {key!r} is refused: a link leads it out of the store")
        return path

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise StoreMisconfiguredError(
                f"the store's folder {self._root} does not exist; create it, or set ZIMAGE_STORE__PATH"
            )

    def _write(self, path: Path, data: bytes, description: dict[str, object]) -> bool:
        """Write an object and its metadata; return False if the path already exists."""
        with self._staged(data) as file, self._staged(json.dumps(description).encode()) as text:
            pending = self._metadata_path(path, f"{file.stat().st_ino}.pending")
            final = self._metadata_path(path, "json")
            self._make_folder(final.parent)
            self._make_folder(path.parent)
            os.replace(text, pending)
            _sync(pending.parent)
            try:
                os.link(file, path)
            except FileExistsError as error:
                pending.unlink()
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from error
                return False
            except OSError:
                pending.unlink()
                raise
            _sync(path.parent)
            os.replace(pending, final)
            _sync(final.parent)
        return True

    def _description(self, path: Path, inode: int) -> Any:
        # In this order: a file with the key's name may be left over from an object that has been removed.
        for name in (f"{inode}.pending", "json"):
            try:
                return json.loads(self._metadata_path(path, name).read_bytes())
            except FileNotFoundError:
                continue
        # Another program wrote this file, so a store must not overwrite it.
        return {"content_type": "application/octet-stream", "metadata": {}}

    def _metadata_path(self, path: Path, suffix: str) -> Path:
        # The dot distinguishes metadata files from folders of keys, whose parts cannot begin with one.
        same = self._root / _METADATA / path.relative_to(self._root)
        return same.with_name(f".{path.name}.{suffix}")

    @contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        """Yield a temporary file with these bytes, synced to disk; its name is removed afterwards."""
        folder = self._root / _INCOMING
        folder.mkdir(exist_ok=True)
        file = folder / secrets.token_hex(8)
        try:
            with file.open("xb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            yield file
        finally:
            file.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder below the root durably, so that it survives a power failure."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
        _sync(folder.parent)

    def _raise(self, error: OSError, what: str) -> NoReturn:
        code = error.errno or 0
        if code in _REJECTED and self._root.is_dir():
            raise StoreRejectedError(f"{what} is refused: {_REJECTED[code]} ({error})") from error
        if code in _MISCONFIGURED:
            raise StoreMisconfiguredError(
                f"the store's folder {self._root}: {_MISCONFIGURED[code]} ({error})"
            ) from error
        raise StoreUnavailableError(f"the store's folder {self._root}: {error}") from error


def _sync(folder: Path) -> None:
    """Sync a folder, so that the names in it survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
