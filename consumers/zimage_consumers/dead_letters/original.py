"""The record that a dead letter is about, where it did not fit into the letter whole."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from confluent_kafka import Message

from zimage_consumers.dead_letters.choose import NotMendableError
from zimage_consumers.dead_letters.letter import DeadLetter, Decoder
from zimage_stream.errors import TopicMissingError
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import CUTS, HEADERS_LEFT_OUT, REASONS, VALUE_SHA256
from zimage_stream.kafka.reader import TopicReader, UnreadableHeadersError, record_headers
from zimage_stream.settings import KafkaSettings

_POLL_S = 0.2


def whole(kafka: KafkaSettings, codec: Codec, letter: DeadLetter) -> DeadLetter:
    """The letter with all of its record, read again at its place where the letter does not have all of it.

    Raises:
        NotMendableError: it cannot be had any more.
        BrokerUnavailableError: no broker answers.
    """
    cut = {name for name in CUTS if letter.said(name) is not None}
    # Headers that nobody could read are not to be had at its place either.
    if not cut or (cut == {HEADERS_LEFT_OUT} and letter.said(HEADERS_LEFT_OUT) == "all"):
        return letter
    message = _find(kafka, letter)
    value = message.value()
    value = value.encode() if isinstance(value, str) else value
    hashed = letter.said(VALUE_SHA256)
    same = value == letter.value if hashed is None else sha256(value or b"").hexdigest() == hashed
    if not same:
        raise NotMendableError(
            f"{letter.place} does not have all of its record, and the record that lies at {letter.source} "
            f"now is another one"
        )
    key = message.key()
    try:
        own = record_headers(message)
    except UnreadableHeadersError:
        own = []
    said = [(name, text) for name, text in letter.headers if name in REASONS or name in CUTS]
    request, unreadable = Decoder(codec).read(value)
    return replace(
        letter,
        key=key.encode() if isinstance(key, str) else key,
        value=value,
        headers=[*own, *said],
        request=request,
        unreadable=unreadable,
    )


def _find(kafka: KafkaSettings, letter: DeadLetter) -> Message:
    topic = letter.said("__connect.errors.topic") or ""
    number, offset = (letter.said(f"__connect.errors.{name}") or "" for name in ("partition", "offset"))
    gone = NotMendableError(
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
            while not reader.caught_up:
                message = reader.poll(_POLL_S)
                if message is None:
                    if reader.trouble is not None:
                        raise reader.trouble
                    continue
                # What was deleted is passed over.
                if message.offset() != int(offset):
                    raise gone
                return message
    except TopicMissingError as error:
        raise gone from error
    raise gone
