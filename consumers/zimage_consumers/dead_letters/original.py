"""Fetches the original record of a dead letter that does not hold all of it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from zimage_consumers.dead_letters.choose import NotReplayableError
from zimage_consumers.dead_letters.letter import DeadLetter, Decoder
from zimage_stream.errors import TopicMissingError
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import CUTS, HEADERS_LEFT_OUT, REASONS, VALUE_SHA256
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.settings import KafkaSettings


def complete_letter(kafka: KafkaSettings, codec: Codec, letter: DeadLetter) -> DeadLetter:
    """Complete a letter from its original record, where parts did not fit into the letter.

    Raises:
        NotReplayableError: the original record is not available any more.
        BrokerUnavailableError: no broker responds.
    """
    cut = {name for name in CUTS if letter.header(name) is not None}
    # Headers that the worker could not read cannot be read from the original record either.
    if not cut or (cut == {HEADERS_LEFT_OUT} and letter.header(HEADERS_LEFT_OUT) == "all"):
        return letter
    record = _find(kafka, letter)
    if not _same_value(record, letter):
        raise NotReplayableError(
            f"{letter.place} does not have all of its record, and the record that is at {letter.source} "
            f"now is another one"
        )
    said = [(name, text) for name, text in letter.headers if name in REASONS or name in CUTS]
    request, unreadable = Decoder(codec).read(record.value)
    return replace(
        letter,
        key=record.key,
        value=record.value,
        headers=[*record.headers, *said],
        request=request,
        unreadable=unreadable,
    )


def _same_value(record: Record, letter: DeadLetter) -> bool:
    """Whether the record has the value that the letter has, or whose hash it has."""
    hashed = letter.header(VALUE_SHA256)
    if hashed is None:
        return record.value == letter.value
    return sha256(record.value or b"").hexdigest() == hashed


def _find(kafka: KafkaSettings, letter: DeadLetter) -> Record:
    topic = letter.header("__connect.errors.topic") or ""
    number, offset = (letter.header(f"__connect.errors.{name}") or "" for name in ("partition", "offset"))
    gone = NotReplayableError(
        f"{letter.place} does not have all of its record, which is not kept any more at {letter.source}; "
        f"give its bytes with --value"
    )
    if not (topic and number.isdecimal() and offset.isdecimal()):
        raise gone
    try:
        with TopicReader(kafka, topic) as reader:
            if int(offset) >= reader.end_offsets().get(int(number), 0):
                raise gone
            reader.start({int(number): int(offset)})
            record = next(reader.read_to_end(), None)
    except TopicMissingError as error:
        raise gone from error
    # Deleted offsets are passed over.
    if record is None or record.offset != int(offset):
        raise gone
    return record
