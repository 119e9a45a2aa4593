"""Notes of replayed dead letters: one each, in a compacted topic next to the dead letters."""

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
"""How far the clock of a replaying machine may be behind the clock of the worker that wrote the letter."""

_REPLAYED = b"replayed"


@dataclass(frozen=True, slots=True)
class ReplayNote:
    """A note that a letter was replayed.

    Attributes:
        at: when it was replayed.
        fingerprint: the letter's fingerprint; ``None`` in notes of earlier versions, with only a position.
    """

    at: datetime = field(compare=False)
    fingerprint: str | None

    def is_of(self, letter: DeadLetter) -> bool:
        """Whether this is the letter that was replayed. After the dead-letter topic is created again, another
        letter is at the note's position."""
        if self.fingerprint is not None:
            return self.fingerprint == letter.fingerprint
        return letter.at <= self.at + CLOCKS_DIFFER


@dataclass(slots=True)
class ReplayNotes:
    """The notes, by position. ``letter in notes`` tells whether the letter was replayed."""

    _notes: dict[LetterPosition, ReplayNote] = field(default_factory=dict)

    def __contains__(self, letter: DeadLetter) -> bool:
        note = self._notes.get(letter.place)
        return note is not None and note.is_of(letter)

    def add(self, place: LetterPosition, note: ReplayNote) -> None:
        """Add a note, replacing an earlier one for the same position."""
        self._notes[place] = note


def key_of(letter: DeadLetter) -> bytes:
    """Key of a letter's note: a position has one note, the latest."""
    return str(letter.place).encode()


def value_of(letter: DeadLetter) -> bytes:
    """Value of a letter's note."""
    return _REPLAYED + b" " + letter.fingerprint.encode()


def read_notes(settings: Settings) -> ReplayNotes:
    """Read the notes of all dead letters replayed so far.

    Raises:
        BrokerUnavailableError: no broker responds.
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
        log.warning("skipped a record of %s that is not a note (offset %s)", record.topic, record.offset)
        return
    _, _, fingerprint = _text(record.value).partition(" ")
    notes.add(place, ReplayNote(record.timestamp, fingerprint or None))


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")
