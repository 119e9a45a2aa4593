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
"""Of a write that meets another one, before the folder is taken for confused."""

_METADATA, _INCOMING = ".metadata", ".incoming"
_LEFT_BEHIND_S = 3_600.0
_OPERATOR = {
    errno.EACCES: "access is refused",
    errno.EDQUOT: "the quota is used up",
    errno.ENOENT: "the folder is not there",
    errno.ENOSPC: "the disk is full",
    errno.ENOTDIR: "it is no folder",
    errno.EOPNOTSUPP: "its file system has no hard links",
    errno.EPERM: "access is refused, or its file system has no hard links",
    errno.EROFS: "the file system is read-only",
}
_OBJECT = {
    errno.EISDIR: "it is a folder of other objects",
    errno.ENAMETOOLONG: "a part of it is too long for this file system",
    errno.ENOTDIR: "a part of it is another object",
}


class DirectoryStore:
    """Objects are files under their keys; what is said of them lies under ``.metadata``.

    An object is written whole under ``.incoming`` and then linked into its place, which fails where
    something is already: the first writer wins. Its note is there before it, named by key and inode;
    a link keeps the inode, so of two writers each note describes its own bytes, whoever wins, and an
    object is never visible without its metadata. Only then the note takes the key alone for its name,
    so that a copy of the folder, whose inodes are others, is a store as well. A crash at any point
    leaves a state from which the next writer goes on.
    """

    bucket = ""

    def __init__(self, path: Path) -> None:
        self._root = path.absolute()

    def check(self) -> None:
        self._be_there()
        self._remove_left_behind()
        self.probe()

    def _remove_left_behind(self) -> None:
        """Remove what writers that were killed have staged; what is young may be another process's."""
        for file in (self._root / _INCOMING).glob("*"):
            # Another process may remove it meanwhile.
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _LEFT_BEHIND_S:
                    file.unlink(missing_ok=True)

    def create(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._raise(error, "it")

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        place, said = self._place(key), checked_metadata(metadata)
        self._be_there()
        try:
            for _ in range(ROUNDS):
                existing = self.stat(key)
                if existing is not None:
                    return Put(existing, created=False)
                if self._write(place, data, {"content_type": content_type, "metadata": said}):
                    return Put(StoredObject(key, len(data), content_type, said), created=True)
        except OSError as error:
            self._raise(error, key)
        raise StoreUnavailableError(f"{key} is written and taken away by others all the time")

    def stat(self, key: str) -> StoredObject | None:
        place = self._place(key)
        self._be_there()
        try:
            found = place.stat()
            if not stat.S_ISREG(found.st_mode):
                return None
            said = self._said(place, found.st_ino)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._raise(error, key)
        return StoredObject(key, found.st_size, said["content_type"], said["metadata"])

    def get(self, key: str) -> bytes:
        place = self._place(key)
        self._be_there()
        try:
            return place.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise StoreError(f"there is no object {key} in {self._root}") from None
        except OSError as error:
            self._raise(error, key)

    def probe(self) -> None:
        self._be_there()
        try:
            with self._staged(b"probe") as file:
                linked = file.with_name(f"{file.name}.linked")
                os.link(file, linked)
                linked.unlink()
        except OSError as error:
            self._raise(error, "a probe")

    def uri(self, key: str) -> str:
        return self._place(key).as_uri()

    def close(self) -> None:
        pass

    def _place(self, key: str) -> Path:
        """Where a key's object lies; nothing outside the folder and nothing of the store's own."""
        place = self._root.joinpath(*checked_key(key))
        if not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(self._root)):
            raise StoreRejectedError(f"the key {key!r} is refused: a link leads it out of the store")
        return place

    def _be_there(self) -> None:
        if not self._root.is_dir():
            raise StoreMisconfiguredError(
                f"the store's folder {self._root} is not there; make it, or set ZIMAGE_STORE__PATH"
            )

    def _write(self, place: Path, data: bytes, said: dict[str, object]) -> bool:
        """Put an object into its place; false where something is there."""
        with self._staged(data) as file, self._staged(json.dumps(said).encode()) as text:
            pending = self._note(place, f"{file.stat().st_ino}.pending")
            note = self._note(place, "json")
            self._make_folder(note.parent)
            self._make_folder(place.parent)
            os.replace(text, pending)
            _sync(pending.parent)
            try:
                os.link(file, place)
            except FileExistsError as error:
                pending.unlink()
                if place.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place)) from error
                return False
            except OSError:
                pending.unlink()
                raise
            _sync(place.parent)
            os.replace(pending, note)
            _sync(note.parent)
        return True

    def _said(self, place: Path, inode: int) -> Any:
        # In this order: the note of an object that somebody has removed may still have the key's name.
        for name in (f"{inode}.pending", "json"):
            try:
                return json.loads(self._note(place, name).read_bytes())
            except FileNotFoundError:
                continue
        # Not written by a store, and not to be overwritten by one.
        return {"content_type": "application/octet-stream", "metadata": {}}

    def _note(self, place: Path, suffix: str) -> Path:
        # The dot keeps notes apart from the folders of keys, whose parts cannot begin with one.
        beside = self._root / _METADATA / place.relative_to(self._root)
        return beside.with_name(f".{place.name}.{suffix}")

    @contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        """A file with these bytes, safely on the disk; gone afterwards under this name."""
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
        """Make a folder below the root, so that its name outlives a power cut."""
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
        if code in _OBJECT and self._root.is_dir():
            raise StoreRejectedError(f"{what} is refused: {_OBJECT[code]} ({error})") from error
        if code in _OPERATOR:
            raise StoreMisconfiguredError(
                f"the store's folder {self._root}: {_OPERATOR[code]} ({error})"
            ) from error
        raise StoreUnavailableError(f"the store's folder {self._root}: {error}") from error


def _sync(folder: Path) -> None:
    """Make names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
