"""Which dead letters were replayed before: a note for each, in a compacted topic beside theirs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from zimage_consumers.dead_letters.letter import DeadLetter, LetterPosition
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.kafka.topics import replayed_topic, topic_exists
from zimage_stream.settings import Settings

log = logging.getLogger(__name__)

CLOCKS_DIFFER = timedelta(minutes=1)
"""By so much the clock of who replays may be behind the clock of who buried."""

_REPLAYED = b"replayed"


@dataclass(frozen=True, slots=True)
class ReplayNote:
    """That a letter was replayed.

    Attributes:
        at: when.
        fingerprint: of the letter; ``None`` in notes of earlier versions, which say its place alone.
    """

    at: datetime = field(compare=False)
    fingerprint: str | None

    def is_of(self, letter: DeadLetter) -> bool:
        """Whether the letter at the note's place is the one that was replayed. After the dead-letter topic
        is made anew another one lies there."""
        if self.fingerprint is not None:
            return self.fingerprint == letter.fingerprint
        return letter.at <= self.at + CLOCKS_DIFFER


@dataclass(slots=True)
class ReplayNotes:
    """The notes, by place. ``letter in notes`` says whether the letter was replayed."""

    _notes: dict[LetterPosition, ReplayNote] = field(default_factory=dict)

    def __contains__(self, letter: DeadLetter) -> bool:
        note = self._notes.get(letter.place)
        return note is not None and note.is_of(letter)

    def add(self, place: LetterPosition, note: ReplayNote) -> None:
        """One more; it takes the place of a former one."""
        self._notes[place] = note


def key_of(letter: DeadLetter) -> bytes:
    """Key of the note of a letter: a place has one note, the latest."""
    return str(letter.place).encode()


def value_of(letter: DeadLetter) -> bytes:
    """What the note says."""
    return _REPLAYED + b" " + letter.fingerprint.encode()


def read_notes(settings: Settings) -> ReplayNotes:
    """Which dead letters were replayed before; none where nothing ever was.

    Raises:
        BrokerUnavailableError: no broker answers.
    """
    topic, notes = replayed_topic(settings.topics).name, ReplayNotes()
    if not topic_exists(settings.kafka, topic):
        return notes
    with TopicReader(settings.kafka, topic) as reader:
        reader.start()
        for record in reader.read_to_end():
            _add(notes, record)
    return notes


def _add(notes: ReplayNotes, record: Record) -> None:
    try:
        place = LetterPosition.parse(_text(record.key))
    except ValueError:
        log.warning("a record of %s that is no note is skipped (offset %s)", record.topic, record.offset)
        return
    _, _, fingerprint = _text(record.value).partition(" ")
    notes.add(place, ReplayNote(record.timestamp, fingerprint or None))


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")
