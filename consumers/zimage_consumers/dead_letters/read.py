"""Reads the dead-letter topic from its beginning to its end at the time of the call."""

from __future__ import annotations

from collections.abc import Iterator

from zimage_consumers.dead_letters.choose import LetterFilter
from zimage_consumers.dead_letters.letter import DeadLetter, Decoder
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import Settings


def read_letters(settings: Settings, codec: Codec, wanted: LetterFilter) -> Iterator[DeadLetter]:
    """Yield the wanted dead letters, oldest first within a partition.

    Letters that arrive during the reading are left out, or a replay would never end.

    Raises:
        BrokerUnavailableError: no broker responds.
        TopicMissingError: the dead-letter topic does not exist.
    """
    decoder = Decoder(codec)
    with TopicReader(settings.kafka, settings.topics.dead_letters) as reader:
        ends = reader.end_offsets()
        reader.start()
        for record in reader.read_to_end(ends):
            letter = decoder.letter_of(record)
            if wanted.matches(letter):
                yield letter
