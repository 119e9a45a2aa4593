"""Saving of results to a folder: the images, a table and a gallery page."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from zimage_stream.client.gallery import PAGE, write_gallery
from zimage_stream.errors import StoreUnavailableError, ZImageError
from zimage_stream.events.image_result import ImageResult, StoredImage
from zimage_stream.imaging.metadata import read_text
from zimage_stream.stores.base import ImageStore

TABLE = "results.csv"
COLUMNS = (
    "request_id",
    "tenant",
    "batch_id",
    "status",
    "code",
    "message",
    "prompt",
    "file",
    "uri",
    "width",
    "height",
    "seed",
    "steps",
    "sha256",
    "attempts",
    "total_ms",
    "attributes",
)

THREADS = 4
WAITING = 64
"""Maximum number of results being saved; beyond it :meth:`Saver.save` blocks."""

STORE_TRIES = 4
LAST_WAIT_S = 1.0
"""Time for running downloads to finish after Ctrl-C, in seconds; a store that answers needs no more."""

_MAX_NAME_BYTES = 200
"""Maximum length of a file name, in bytes. File systems allow 255; the rest is for a number, the extension
and additions by sync clients."""
_MAX_CELL_CHARACTERS = 32_000
"""Maximum length of a table cell, in characters; spreadsheets allow 32,767."""
_STALE_S = 3_600.0
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_UNSAFE = re.compile(r"[^\w.~-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FORMULA = re.compile("'*[-=+@\t\r\n＝＋－＠]")
"""Matches a cell that a spreadsheet would run as a formula, after any number of apostrophes."""


class SavingError(ZImageError):
    """The folder for the images cannot be written."""


class DamagedImageError(ZImageError):
    """The stored bytes do not match the hash in the result."""


def safe_name(text: str) -> str:
    """Make a file name, without extension, that is valid on all systems: letters, digits and ``. _ ~ -``."""
    name = _UNSAFE.sub("_", text).strip("._ ")
    if len(name.encode()) > _MAX_NAME_BYTES:
        # Long names may differ only at their ends.
        mark = f"~{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"
        cut = name.encode()[: _MAX_NAME_BYTES - len(mark)].decode(errors="ignore")
        name = cut.rstrip("._ ") + mark
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name


def candidate_names(stem: str, extension: str) -> Iterator[str]:
    """Yield ``stem.ext``, then ``stem-2.ext`` and so on, indefinitely."""
    yield stem + extension
    number = 2
    while True:
        yield f"{stem}-{number}{extension}"
        number += 1


def table_row(result: ImageResult, file: str, prompt: str = "") -> list[str]:
    """Build the row of a result, with :data:`COLUMNS`, safe to open in a spreadsheet."""
    image, error = result.image, result.error
    values = {
        "request_id": result.request_id,
        "tenant": result.tenant,
        "batch_id": result.batch_id or "",
        "status": result.status.value,
        "code": error.code if error else "",
        "message": error.message if error else "",
        "prompt": prompt,
        "file": file,
        "attempts": result.attempts,
        "total_ms": "" if result.timing.total_ms is None else round(result.timing.total_ms),
        "attributes": json.dumps(dict(result.attributes), ensure_ascii=False) if result.attributes else "",
    }
    if image is not None:
        for name in ("uri", "width", "height", "seed", "steps", "sha256"):
            values[name] = getattr(image, name)
    return [_escaped_cell(values.get(column, "")) for column in COLUMNS]


class Saver:
    """Saves results as they arrive. A context manager: on exit it waits for running downloads (except after
    Ctrl-C) and writes the page.

    An image that the folder already has under its name is not downloaded again, so an interrupted run can be
    repeated. If that name belongs to a different image, that image is kept and the new one gets a number.

    Args:
        store: the store that contains the results' ``image.key``; thread-safe, not closed here.
        folder: created if it does not exist; ``results.csv`` and ``index.html`` in it are overwritten.
        title: title of the page.

    Raises:
        SavingError: the folder or the table cannot be written.
    """

    def __init__(self, store: ImageStore, folder: Path, title: str = "Images") -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            # The byte order mark makes spreadsheets read the file as UTF-8.
            self._file = (folder / TABLE).open(
                "w", encoding="utf-8-sig", errors="backslashreplace", newline=""
            )
        except OSError as error:
            raise SavingError(f"{error.filename or folder}: {error.strerror}") from error
        self._store = store
        self._folder = folder
        self._title = title
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._running: set[Future[None]] = set()
        self._room = threading.BoundedSemaphore(WAITING)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="zimage-save")
        self._table = csv.writer(self._file)
        self._table.writerow(COLUMNS)
        self.problems: list[str] = []
        """Why images could not be saved; at most 100 entries."""
        self.failed = 0
        self.saved = 0
        self.page = folder / PAGE
        """Path of the page, which is written on exit."""

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not KeyboardInterrupt:
                self._pool.shutdown(wait=True)
        finally:
            # After Ctrl-C, even during the wait above, stop soon: the store may not answer for minutes.
            self._stopping.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            wait(tuple(self._running), LAST_WAIT_S)
            self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._file.close()
        try:
            write_gallery(self._folder, self._title, _rows(self._folder / TABLE))
        except OSError as error:
            raise SavingError(f"{error.filename or self.page}: {error.strerror}") from error

    def save(self, result: ImageResult, name: str | None = None, prompt: str | None = None) -> None:
        """Add a result to the table, and save its image, if any, to the folder.

        Args:
            name: file name without extension; unsafe characters are replaced. By default the request's id.
            prompt: by default, the prompt in the image's metadata.
        """
        self._room.acquire()
        saving = self._pool.submit(self._save, result, name or result.request_id, prompt)
        self._running.add(saving)
        saving.add_done_callback(self._make_room)

    def _make_room(self, saving: Future[None]) -> None:
        self._running.discard(saving)
        self._room.release()

    def _save(self, result: ImageResult, name: str, prompt: str | None) -> None:
        file = ""
        try:
            if result.image is not None:
                file = self._fetch(result.image, safe_name(name))
                if prompt is None:
                    prompt = _prompt_in(self._folder / file)
        except (ZImageError, OSError) as error:
            with self._lock:
                self.failed += 1
                if len(self.problems) < 100:
                    self.problems.append(f"{result.request_id}: {error}")
        with self._lock:
            self.saved += bool(file)
            self._table.writerow(table_row(result, file, prompt or ""))
            self._file.flush()

    def _fetch(self, image: StoredImage, stem: str) -> str:
        extension = os.path.splitext(image.key)[1]
        first = self._folder / (stem + extension)
        if _is_copy_of(first, image):
            return first.name
        data = self._get(image.key)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise DamagedImageError(f"{image.uri} does not match its result: the sha256 differs")
        unfinished = self._folder / f".{secrets.token_hex(8)}.part"
        try:
            unfinished.write_bytes(data)
            for name in candidate_names(stem, extension):
                try:
                    # Unlike a rename, a link never replaces an existing file.
                    os.link(unfinished, self._folder / name)
                except FileExistsError:
                    if not _is_copy_of(self._folder / name, image):
                        continue
                return name
            raise AssertionError("candidates never end")
        finally:
            unfinished.unlink(missing_ok=True)

    def _get(self, key: str) -> bytes:
        for left in reversed(range(STORE_TRIES)):
            try:
                return self._store.get(key)
            except StoreUnavailableError:
                if not left or self._stopping.wait(2.0 ** (STORE_TRIES - left) / 10):
                    raise
        raise AssertionError("the last attempt returns or raises")


def _remove_stale(folder: Path) -> None:
    """Remove partial downloads of runs that were killed; recent ones may be another process's."""
    for path in folder.iterdir():
        if not _PART.fullmatch(path.name):
            continue
        # Another process may remove its own file at any time.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def _is_copy_of(path: Path, image: StoredImage) -> bool:
    try:
        if path.stat().st_size != image.size_bytes:
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == image.sha256
    except OSError:
        return False


def _prompt_in(image: Path) -> str:
    try:
        return read_text(image.read_bytes()).get("prompt", "")
    except (OSError, ValueError):
        # Another program's image, or one that Pillow cannot read; its hash matched the result nevertheless.
        return ""


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of the table for the page, with numbers converted."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            values: dict[str, Any] = {name: _unescaped_cell(text) for name, text in row.items() if text}
            for name in ("width", "height"):
                if name in values:
                    values[name] = int(values[name])
            yield {"prompt": "", "file": ""} | values


def _escaped_cell(value: object) -> str:
    """Convert a value to a cell, and quote text that a spreadsheet would run as a formula: attributes are
    untrusted."""
    text = str(value)
    if len(text) > _MAX_CELL_CHARACTERS:
        text = f"{text[:_MAX_CELL_CHARACTERS]}… ({len(text):,} characters)"
    return "'" + text if isinstance(value, str) and _FORMULA.match(text) else text


def _unescaped_cell(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
