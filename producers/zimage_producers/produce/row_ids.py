"""Ids for rows that have none: of what a row says, so that it keeps its id wherever it stands in its file."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile

from zimage_producers.produce.rows import InputError, Row, id_prefix

_CACHE_KIB = 2_048
_COUNT = """
    INSERT INTO seen VALUES (?, 1) ON CONFLICT (hash) DO UPDATE SET count = count + 1 RETURNING count
"""


class RowIds:
    """Gives each row of a batch an id: the batch's name and a hash of the row, and a number from the second
    equal row on. A file that is sent again asks for the same pictures, also where rows were inserted,
    removed or sorted meanwhile. Close it when the file is read.

    How often a row was there is kept in a file of SQLite's own, which goes by itself: memory is bounded.
    """

    def __init__(self, batch_id: str) -> None:
        self._prefix = id_prefix(batch_id)
        self._seen = sqlite3.connect("", isolation_level=None)
        self._seen.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID")

    def id_of(self, row: Row) -> str:
        """The id of the next row of the file. Raises InputError where the temporary folder is full."""
        said = {name: str(value) for name, value in row.values.items() if value is not None}
        text = json.dumps(said, sort_keys=True, ensure_ascii=True)
        mark = hashlib.sha256(text.encode()).digest()[:8]
        try:
            (count,) = self._seen.execute(_COUNT, (mark,)).fetchone()
        except sqlite3.Error as error:
            raise InputError(f"rows cannot be counted in {tempfile.gettempdir()}: {error}") from error
        return f"{self._prefix}-{mark.hex()}" + (f"-{count}" if count > 1 else "")

    def close(self) -> None:
        """Forget all rows."""
        self._seen.close()
