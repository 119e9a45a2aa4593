"""One dead letter: what was sent, and why it failed. Pure."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from zimage_stream.cli.printing import plain_fields
from zimage_stream.errors import RegistryUnavailableError, WireError
from zimage_stream.events.codec import CONFLUENT_V0, Codec
from zimage_stream.events.headers import CUTS, Headers, replays_of, without_reasons
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.registry import SchemaUnavailableError
from zimage_stream.kafka.record import Record

UNSAID = "(unsaid)"
"""Code of a record without a code header, which a foreign program must have put there."""


class LetterPosition(NamedTuple):
    """Position of a dead letter in its topic; people write it ``partition:offset``."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @staticmethod
    def parse(text: str) -> LetterPosition:
        """Parse ``partition:offset``. Raises ValueError if it is not one."""
        partition, colon, offset = text.partition(":")
        if not (
            colon and partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()
        ):
            raise ValueError(f"{text!r} is not PARTITION:OFFSET")
        return LetterPosition(int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letter topic.

    Attributes:
        key, value, headers: as in the topic; the reasons are among the headers.
        at: when it was written.
        request: the request in it, where it can be read; else ``unreadable`` says why not.
    """

    place: LetterPosition
    key: bytes | None
    value: bytes | None
    headers: Headers
    at: datetime
    request: PromptRequest | None
    unreadable: str | None

    def header(self, name: str) -> str | None:
        """The last header with this name, as text."""
        values = [value for header, value in self.headers if header == name and value is not None]
        return values[-1].decode(errors="replace") if values else None

    @property
    def code(self) -> str:
        """Code of the reason why it failed."""
        return self.header("zimage.code") or UNSAID

    @property
    def message(self) -> str:
        """Reason why it failed, for people."""
        return self.header("__connect.errors.exception.message") or ""

    @property
    def cut(self) -> dict[str, str]:
        """Parts of the record that did not fit into the letter, as its headers state them."""
        return {
            name.removeprefix("zimage."): said for name in CUTS if (said := self.header(name)) is not None
        }

    @property
    def request_id(self) -> str | None:
        """Id in its request, else its key."""
        if self.request is not None:
            return self.request.request_id
        return self.key.decode(errors="replace") if self.key else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all its contents. It tells the letter from every other, even from one at the same
        position after the topic was created again."""
        digest = hashlib.sha256(self.at.isoformat().encode())
        parts = [self.key, self.value]
        for name, value in self.headers:
            parts += [name.encode(errors="backslashreplace"), value]
        for part in parts:
            # Each part is preceded by its length, so that no part runs into the next.
            digest.update(b"-" if part is None else b"%d:%b" % (len(part), part))
        return digest.hexdigest()

    @property
    def replays(self) -> int:
        """How often its record had been replayed before it failed this time."""
        return replays_of(self.headers)

    @property
    def source(self) -> str:
        """The record that failed, as topic/partition/offset."""
        names = ("topic", "partition", "offset")
        return "/".join(self.header(f"__connect.errors.{name}") or "?" for name in names)

    def as_dict(self) -> dict[str, Any]:
        """The letter as JSON: ``value`` and ``key`` in base64, headers in order, as text if possible."""
        return {
            "place": str(self.place),
            "code": self.code,
            "message": self.message,
            "at": self.at.isoformat(timespec="milliseconds"),
            "request_id": self.request_id,
            "source": self.source,
            "attempts": _number(self.header("zimage.attempts")),
            "worker": self.header("zimage.worker"),
            "replays": self.replays,
            "cut": self.cut,
            "request": None if self.request is None else plain_fields(self.request),
            "unreadable": self.unreadable,
            "key": _base64(self.key),
            "value": _base64(self.value),
            "headers": [[name, _text_or_base64(value)] for name, value in without_reasons(self.headers)],
        }


class Decoder:
    """Builds dead letters from records."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._registry_down: RegistryUnavailableError | None = None

    def letter_of(self, record: Record) -> DeadLetter:
        """The dead letter in a record of the dead-letter topic."""
        place = LetterPosition(record.partition, record.offset)
        request, unreadable = self.read(record.value)
        # Headers that cannot be read are not ours.
        headers = list(record.headers)
        return DeadLetter(place, record.key, record.value, headers, record.timestamp, request, unreadable)

    def read(self, value: bytes | None) -> tuple[PromptRequest | None, str | None]:
        """The request in a record's value, or why it cannot be read."""
        # Not asked again for each letter: a registry that is down would take hours in total.
        if self._registry_down is not None and value and value.startswith(CONFLUENT_V0):
            return None, str(self._registry_down)
        try:
            return self._codec.decode_request(value), None
        except SchemaUnavailableError as error:
            return None, str(error)
        except RegistryUnavailableError as error:
            self._registry_down = error
            return None, str(error)
        except WireError as error:
            return None, str(error)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _text_or_base64(value: bytes | None) -> str | dict[str, str] | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
