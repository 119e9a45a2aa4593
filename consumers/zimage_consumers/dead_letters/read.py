"""Reading the dead-letter topic from its beginning to where it ended when asked."""

from __future__ import annotations

from collections.abc import Iterator

from zimage_consumers.dead_letters.choose import Wanted
from zimage_consumers.dead_letters.letter import DeadLetter, Decoder
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import Settings

_POLL_S = 0.2


def read_letters(settings: Settings, codec: Codec, wanted: Wanted) -> Iterator[DeadLetter]:
    """The wanted dead letters, oldest first within a partition.

    Those that come while reading are left out: a replay would never end.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: there is no such topic.
    """
    decoder = Decoder(codec)
    with TopicReader(settings.kafka, settings.topics.dead_letters) as reader:
        ends = reader.end_offsets()
        reader.start()
        while not reader.caught_up and any(reader.positions[p] < end for p, end in ends.items() if end):
            message = reader.poll(_POLL_S)
            if message is None:
                if reader.trouble is not None:
                    raise reader.trouble
                continue
            letter = decoder.letter_of(message)
            if letter.place.offset < ends[letter.place.partition] and wanted.matches(letter):
                yield letter
