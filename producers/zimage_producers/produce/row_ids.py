"""Ids for rows without one, derived from their contents, so that a row keeps its id if it moves."""

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
    """Assigns an id to each row of a batch. Close it after the file has been read.

    The id consists of the batch's name, a hash of the row and, from the second equal row on, a number.
    Sending a file again therefore requests the same images, even if rows were inserted, removed or sorted.

    The counts of equal rows are in a temporary SQLite database, so memory is bounded.
    """

    def __init__(self, batch_id: str) -> None:
        self._prefix = id_prefix(batch_id)
        self._seen = sqlite3.connect("", isolation_level=None)
        self._seen.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID")

    def id_of(self, row: Row) -> str:
        """Return the id of the next row of the file. Raises InputError if the temporary folder is full."""
        values = {name: str(value) for name, value in row.values.items() if value is not None}
        text = json.dumps(values, sort_keys=True, ensure_ascii=True)
        digest = hashlib.sha256(text.encode()).digest()[:8]
        try:
            (count,) = self._seen.execute(_COUNT, (digest,)).fetchone()
        except sqlite3.Error as error:
            raise InputError(f"rows cannot be counted in {tempfile.gettempdir()}: {error}") from error
        return f"{self._prefix}-{digest.hex()}" + (f"-{count}" if count > 1 else "")

    def close(self) -> None:
        """Forget all rows."""
        self._seen.close()
