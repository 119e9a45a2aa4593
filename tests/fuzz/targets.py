"""Every decoder of untrusted bytes, as a function that raises nothing but the errors it documents.

``test_decoders.py`` runs them with hypothesis and on the stored corpus; ``harness.py`` runs one of them for
any length of time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from PIL import Image

from zimage_consumers.dead_letters.letter import LetterPosition
from zimage_consumers.image_worker.window.ledger import take_over
from zimage_producers.produce import rows
from zimage_producers.produce.encoding import detect, text_lines
from zimage_producers.produce.json_lines import read_json_lines
from zimage_producers.produce.table import read_table
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.errors import RequestError, WireError
from zimage_stream.events import PromptRequest
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import dead_letter_headers, replay_headers
from zimage_stream.events.image_result import ImageResult, Source, Status
from zimage_stream.events.rules import check_request
from zimage_stream.imaging import encode
from zimage_stream.imaging.metadata import read_text

CODEC = Codec()
AT = datetime(2026, 1, 1, tzinfo=UTC)
REQUEST = PromptRequest(
    prompt="雾中的灯塔", request_id="r-1", seed=7, expires_at=AT, batch_id="b", attributes={"sku": "A-1"}
)
RESULT = ImageResult(
    request_id="r-1",
    status=Status.FAILED,
    source=Source(topic="t", partition=1, offset=2),
    requested_at=AT,
    completed_at=AT,
)
CHECKPOINT = Checkpoint(41, resolved=0b1011010, owner=7)


def request(data: bytes) -> None:
    """A record of the requests topic: decoded, checked, and encoded again."""
    try:
        decoded = CODEC.decode_request(data)
    except WireError:
        return
    try:
        checked = check_request(decoded)
    except RequestError:
        return
    again = CODEC.decode_request(CODEC.encode_request(checked, "t"))
    assert again == checked


def result(data: bytes) -> None:
    """A record of the results topic."""
    try:
        decoded = CODEC.decode_result(data)
    except WireError:
        return
    assert isinstance(decoded.status, Status)


def checkpoint(data: bytes) -> None:
    """The metadata of a commit, preceded by its offset."""
    (offset,) = struct.unpack(">Q", data[:8].rjust(8, b"\0"))
    try:
        decoded = Checkpoint.decode(data[8:].decode("latin-1"), offset)
    except ValueError:
        return
    assert decoded.base == offset
    take_over(decoded, owner=1, died=True)


def sealed(data: bytes) -> None:
    """The same with a valid checksum, as a faulty version of the worker could write it."""
    (base,) = struct.unpack(">Q", data[1:9].rjust(8, b"\0"))
    metadata = base64.b64encode(data + struct.pack(">I", zlib.crc32(data))).rstrip(b"=")
    checkpoint(struct.pack(">Q", base) + metadata)


def table(data: bytes) -> None:
    """A CSV file in any encoding."""
    for codec in ("utf-8", "gb18030", "utf-16-le"):
        _read(lambda lines: read_table(lines).rows, data, codec)
    with contextlib.suppress(rows.InputError):
        detect(lambda: [data])


def lines(data: bytes) -> None:
    """A JSON Lines file."""
    _read(read_json_lines, data, "utf-8")


def _read(read: Callable[[Iterable[str]], Iterable[rows.Row]], data: bytes, codec: str) -> None:
    try:
        for row in read(text_lines([data], codec)):
            if row.problem is not None:
                continue
            try:
                check_request(rows.request_of(row, "batch", "batch-1", {}))
            except RequestError:
                continue
    except rows.InputError:
        return


def headers(data: bytes) -> None:
    """The headers of a record that fails and is replayed."""
    parts = (part.partition(b"=") for part in data.split(b"\n"))
    pairs = [(name.decode("latin-1"), value) for name, _, value in parts]
    letter = dead_letter_headers(
        pairs,
        topic="t",
        partition=0,
        offset=1,
        exception_class="E",
        message=data.decode(errors="replace"),
        code="C",
        attempts=0,
        worker="w",
        at=AT,
    )
    replay_headers(letter, topic="d", partition=0, offset=0)


def picture(data: bytes) -> None:
    """The metadata in an image."""
    try:
        read_text(data)
    except ValueError:
        return


def place(data: bytes) -> None:
    """A dead letter's position as a user types it."""
    try:
        assert str(LetterPosition.parse(data.decode(errors="replace")))
    except ValueError:
        return


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (request, result, checkpoint, sealed, table, lines, headers, picture, place)
}

SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "request": (CODEC.encode_request(REQUEST, "t"), b"\x00\x00\x00\x00\x01"),
    "result": (CODEC.encode_result(RESULT, "t"),),
    "checkpoint": (struct.pack(">Q", 41) + CHECKPOINT.encode().encode(),),
    "sealed": (base64.b64decode(CHECKPOINT.encode() + "==")[:-4],),
    "table": ('prompt,sku,width\n雾中的灯塔,A-1,64\n"a ""b""\nc",,x\n'.encode(),),
    "lines": (json.dumps({"prompt": "a", "seed": 1, "attributes": {"a": "b"}}).encode() + b"\n[]\n{\n",),
    "headers": (b"a=b\ntraceparent=00-x\nzimage.replays=3\nzimage.code=X",),
    "picture": tuple(
        encode(Image.new("RGB", (8, 8)), form, None, {"prompt": "雾"}).data
        for form in ("png", "webp", "jpeg")
    ),
    "place": (b"0:17",),
}
