"""Pictures from the store into a folder, with a table and a page of what came of each request."""

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
"""Results on their way to a thread; whoever saves faster than the store gives is held back."""

STORE_TRIES = 4
LAST_WAIT_S = 1.0
"""For what is on its way when Ctrl-C comes; a store that answers needs no more."""

_MAX_NAME_BYTES = 200
"""File systems take 255; the rest is for a number, the extension and what a sync client adds."""
_MAX_CELL_CHARACTERS = 32_000
"""Spreadsheets take 32,767 in a cell."""
_LEFT_BEHIND_S = 3_600.0
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_UNSAFE = re.compile(r"[^\w.~-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FORMULA = re.compile("'*[-=+@\t\r\n＝＋－＠]")
"""What a spreadsheet runs, behind the apostrophes that quote it or that were there before."""


class SavingError(ZImageError):
    """The folder for the pictures cannot be written."""


class DamagedPictureError(ZImageError):
    """The store's bytes are not those that the result vouches for."""


def safe_name(text: str) -> str:
    """A file name without extension on every system: letters of any script, digits, ``. _ ~ -``."""
    name = _UNSAFE.sub("_", text).strip("._ ")
    if len(name.encode()) > _MAX_NAME_BYTES:
        # The end of a long name may be all that tells it from another.
        mark = f"~{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"
        cut = name.encode()[: _MAX_NAME_BYTES - len(mark)].decode(errors="ignore")
        name = cut.rstrip("._ ") + mark
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name


def candidates(stem: str, extension: str) -> Iterator[str]:
    """``stem.ext``, then ``stem-2.ext`` and so on, without end."""
    yield stem + extension
    number = 2
    while True:
        yield f"{stem}-{number}{extension}"
        number += 1


def table_row(result: ImageResult, file: str, prompt: str = "") -> list[str]:
    """A result under :data:`COLUMNS`, safe to open in a spreadsheet."""
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
    return [_cell(values.get(column, "")) for column in COLUMNS]


class Saver:
    """Saves results as they come. A context manager; leaving it waits for what is on its way, unless it is
    left by Ctrl-C, and writes the page.

    A picture that the folder already has under its name is not fetched again, so an interrupted run
    can be repeated. Another picture under that name stays, and ours gets a number.

    Args:
        store: thread-safe; the one that the results' ``image.key`` is in. It is not closed here.
        folder: made if it is not there; ``results.csv`` and ``index.html`` in it are written anew.
        title: of the page.

    Raises:
        SavingError: the folder or the table cannot be written.
    """

    def __init__(self, store: ImageStore, folder: Path, title: str = "Pictures") -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(folder)
            # The mark at the start makes spreadsheets read it as UTF-8.
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
        """Why pictures could not be saved, the first hundred."""
        self.failed = 0
        self.saved = 0
        self.page = folder / PAGE
        """Written at the end."""

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not KeyboardInterrupt:
                self._pool.shutdown(wait=True)
        finally:
            # Ctrl-C, also while we waited: the store may not answer for minutes.
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
        """Put the result into the table and its picture, if it has one, into the folder.

        Args:
            name: of the file, without extension; made safe. Absent: the request's id.
            prompt: absent: what the picture says of itself.
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
        if _holds(first, image):
            return first.name
        data = self._get(image.key)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise DamagedPictureError(f"{image.uri} is not what the result vouches for (sha256 differs)")
        unfinished = self._folder / f".{secrets.token_hex(8)}.part"
        try:
            unfinished.write_bytes(data)
            for name in candidates(stem, extension):
                try:
                    # A link, unlike a rename, never replaces what somebody else has put there.
                    os.link(unfinished, self._folder / name)
                except FileExistsError:
                    if not _holds(self._folder / name, image):
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
        raise AssertionError("the last try returns or raises")


def _remove_left_behind(folder: Path) -> None:
    """Remove pictures that runs which were killed had half fetched; what is young may be another run's."""
    for path in folder.iterdir():
        if not _PART.fullmatch(path.name):
            continue
        # Another run's may go at any moment.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_S:
                path.unlink()


def _holds(path: Path, image: StoredImage) -> bool:
    try:
        if path.stat().st_size != image.size_bytes:
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == image.sha256
    except OSError:
        return False


def _prompt_in(picture: Path) -> str:
    try:
        return read_text(picture.read_bytes()).get("prompt", "")
    except (OSError, ValueError):
        # Somebody else's picture, or none that Pillow reads: it still is what the result vouches for.
        return ""


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    """What the table says, for the page; numbers as numbers."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            values: dict[str, Any] = {name: _uncell(text) for name, text in row.items() if text}
            for name in ("width", "height"):
                if name in values:
                    values[name] = int(values[name])
            yield {"prompt": "", "file": ""} | values


def _cell(value: object) -> str:
    """A text that a spreadsheet would run as a formula is quoted: attributes come from anybody."""
    text = str(value)
    if len(text) > _MAX_CELL_CHARACTERS:
        text = f"{text[:_MAX_CELL_CHARACTERS]}… ({len(text):,} characters)"
    return "'" + text if isinstance(value, str) and _FORMULA.match(text) else text


def _uncell(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
