"""A folder as an image store, for one machine and for the demo."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from zimage_stream.errors import (
    StoreError,
    StoreMisconfiguredError,
    StoreRejectedError,
    StoreUnavailableError,
)
from zimage_stream.stores.base import Put, StoredObject

_METADATA, _INCOMING = ".metadata", ".incoming"
_OPERATORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "access is refused",
    errno.EPERM: "access is refused",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "the folder is not there",
    errno.ENOTDIR: "a part of its path is no folder",
}


class DirectoryStore:
    """Objects are files under their keys; what is said of them lies under ``.metadata``.

    An object is written whole beside its place and then linked into it, which fails where something
    is already: the first writer wins. Its metadata is there before, under the key and the number of
    the object's inode, which a link keeps: so an object is never visible without its metadata, of
    two writers each description fits its own bytes whoever wins, and a crash in between leaves a
    state from which the next writer goes on.
    """

    bucket = ""

    def __init__(self, path: Path) -> None:
        self._root = path.absolute()

    def check(self) -> None:
        if not self._root.is_dir():
            raise StoreMisconfiguredError(
                f"the store's folder {self._root} is not there; make it, or set ZIMAGE_STORE__PATH"
            )
        self.probe()

    def create(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._raise(error)

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        place = self._place(key)
        said = {name.lower(): value for name, value in metadata.items()}
        try:
            existing = self.stat(key)
            if existing is not None:
                return Put(existing, created=False)
            source = self._write(data)
            note = self._note(key, source)
            try:
                self._describe(note, content_type, said)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, place)
                _sync(place.parent)
            except FileExistsError:
                note.unlink(missing_ok=True)
                winner = self.stat(key)
                if winner is None:
                    raise StoreUnavailableError(f"{key} was taken away while it was written") from None
                return Put(winner, created=False)
            finally:
                source.unlink()
        except OSError as error:
            self._raise(error)
        return Put(StoredObject(key, len(data), content_type, said), created=True)

    def stat(self, key: str) -> StoredObject | None:
        place = self._place(key)
        try:
            note = self._note(key, place)
            said = json.loads(note.read_bytes())
            return StoredObject(key, place.stat().st_size, said["content_type"], said["metadata"])
        except FileNotFoundError:
            return None
        except OSError as error:
            self._raise(error)

    def get(self, key: str) -> bytes:
        try:
            return self._place(key).read_bytes()
        except FileNotFoundError:
            raise StoreError(f"there is no object {key} in {self._root}") from None
        except OSError as error:
            self._raise(error)

    def probe(self) -> None:
        try:
            self._write(b"probe").unlink()
        except OSError as error:
            self._raise(error)

    def uri(self, key: str) -> str:
        return self._place(key).as_uri()

    def close(self) -> None:
        pass

    def _place(self, key: str) -> Path:
        """Where a key's object lies; nothing outside the folder and nothing of the store's own."""
        parts = key.split("/")
        if any(not part or part.startswith(".") or "\0" in part or "\\" in part for part in parts):
            raise StoreRejectedError(
                f"the key {key!r} is refused: its parts must not be empty or start with a dot"
            )
        place = self._root.joinpath(*parts)
        if not place.parent.resolve().is_relative_to(self._root.resolve()):
            raise StoreRejectedError(f"the key {key!r} is refused: a link leads it out of the store")
        return place

    def _note(self, key: str, file: Path) -> Path:
        return self._root / _METADATA / f"{key}.{file.stat().st_ino}.json"

    def _describe(self, note: Path, content_type: str, metadata: Mapping[str, str]) -> None:
        text = json.dumps({"content_type": content_type, "metadata": metadata})
        written = self._write(text.encode())
        note.parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, note)
        _sync(note.parent)

    def _write(self, data: bytes) -> Path:
        """A new file with these bytes, safely on the disk."""
        if not self._root.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the store's folder is gone", str(self._root))
        folder = self._root / _INCOMING
        folder.mkdir(exist_ok=True)
        file = folder / secrets.token_hex(8)
        with file.open("xb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        return file

    def _raise(self, error: OSError) -> NoReturn:
        reason = _OPERATORS.get(error.errno or 0)
        if reason is not None:
            raise StoreMisconfiguredError(f"the store's folder {self._root}: {reason} ({error})") from error
        if error.errno == errno.ENAMETOOLONG:
            raise StoreRejectedError(
                f"the object's name is too long for this file system: {error}"
            ) from error
        raise StoreUnavailableError(f"the store's folder {self._root}: {error}") from error


def _sync(folder: Path) -> None:
    """Make names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
