"""The encoding of a file: given by the user, by a byte order mark, or detected if the bytes are unambiguous.

A file without a mark that is not UTF-8 is taken for GB18030 only if it reads as Chinese: nearly every byte
above 0x7F is half of *some* character in GB18030, so successful decoding alone proves nothing.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from zimage_producers.produce.rows import InputError
from zimage_stream.errors import short_repr

MAX_LINE_CHARACTERS = 4 << 20
"""Maximum length of a line, in characters: longer than any request may be, and a bound for input without
line ends."""

_BOMS = (
    # The mark of UTF-32 begins with that of UTF-16, so it must come first.
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
    ("\ufeff".encode("gb18030"), "gb18030", "GB18030"),
)
_BOM = "\ufeff"
_OF_HOST_NAMES = ("idna", "punycode")
_END = re.compile(r"\r\n|\r|\n")
_MIN_COMMON = 0.7
"""Minimum share of common characters among those of two bytes. In Chinese prompts nearly all are common; in
Big5 that is read as GB18030, a third."""


def _rows(first: int, last: int) -> frozenset[str]:
    """Return the characters in a range of rows of GB 2312."""
    cells = (bytes((row, cell)) for row in range(first, last + 1) for cell in range(0xA1, 0xFF))
    return frozenset("".join(cell.decode("gb2312", "ignore") for cell in cells))


_COMMON = _rows(0xA1, 0xA1) | _rows(0xA3, 0xA3) | _rows(0xB0, 0xD7)
"""Common characters: punctuation, full-width forms, and the 3,755 characters of level 1."""

_RARE = _rows(0xD8, 0xF7)
_IN_A_WORD = re.compile(r"[A-Za-z]([^\x00-\x7f])(?=[A-Za-z])")
_REMEDY = "save the file as UTF-8, or specify its encoding: --encoding cp1252, big5, gb18030, …"


@dataclass(frozen=True, slots=True)
class Encoding:
    """An encoding: its codec, its name for display, and why it was chosen, if there was a choice."""

    codec: str
    shown: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.shown} ({self.why})" if self.why else self.shown


UTF_8 = Encoding("utf-8", "UTF-8")


def by_name(name: str) -> Encoding:
    """Return the encoding with a name.

    Raises:
        InputError: there is no such text encoding.
    """
    try:
        "".encode(name)
        found = codecs.lookup(name).name
        if found in _OF_HOST_NAMES:
            raise LookupError
    except (LookupError, ValueError):
        raise InputError(
            f"--encoding: got {short_repr(name)}, takes the name of an encoding such as utf-8, gb18030, "
            "big5, cp1252 or shift_jis"
        ) from None
    return Encoding("utf-8" if found == "utf-8-sig" else found, found.upper(), "as requested")


def by_byte_order_mark(head: bytes) -> Encoding | None:
    """Return the encoding given by the byte order mark, if there is one.

    Raises:
        InputError: there is none, although NUL bytes show that the file is UTF-16.
    """
    for bom, codec, shown in _BOMS:
        if head.startswith(bom):
            return Encoding(codec, shown, "" if codec == "utf-8" else "by its byte order mark")
    if head.count(0) > len(head) // 5:
        raise InputError(
            f"byte {head.index(0) + 1:,} is 0, as in UTF-16, but there is no byte order mark: save the "
            "file as UTF-8, or use --encoding utf-16-le or utf-16-be"
        )
    return None


def detect(chunks: Callable[[], Iterable[bytes]]) -> Encoding:
    """Detect the encoding of a file without a byte order mark. The file is read up to three times.

    Args:
        chunks: reads the file from its beginning.

    Raises:
        InputError: the file is neither UTF-8 nor plausible GB18030, or mixes the two.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks():
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
        return UTF_8
    except UnicodeDecodeError:
        pass
    evidence = _Evidence()
    try:
        for number, line in enumerate(text_lines(chunks(), "gb18030"), 1):
            evidence.add(number, line)
    except InputError:
        evidence.invalid = True
    if problem := evidence.problem():
        where, mixed = _not_utf8(chunks())
        if mixed:
            raise InputError(
                f"{where}, but earlier lines are UTF-8: the file mixes two encodings; fix that line"
            )
        raise InputError(f"{where}, and it does not seem to be GB18030, since {problem}: {_REMEDY}")
    return Encoding("gb18030", "GB18030", "it is not UTF-8, and reads as Chinese")


def text_lines(chunks: Iterable[bytes], codec: str) -> Iterator[str]:
    """Yield lines with their line ends, as soon as they are complete. A byte order mark is dropped.

    Raises:
        InputError: a byte is invalid in the encoding; the message states line, column and byte.
    """
    decoder = codecs.getincrementaldecoder(codec)()
    # Keeps the two characters of a line end together.
    ends = io.IncrementalNewlineDecoder(None, translate=False)
    number, rest, first = 1, "", True
    for chunk, final in _with_last(chunks):
        text, error = _decoded(decoder, codec, chunk, final)
        if first and text:
            text = text.lstrip(_BOM)
            first = not text
        text, begin = ends.decode(text, final or error is not None), 0
        for found in _END.finditer(text):
            yield rest + text[begin : found.end()]
            rest, begin, number = "", found.end(), number + 1
        rest += text[begin:]
        if error is not None:
            byte = error.object[error.start]
            raise InputError(
                f"line {number:,}, column {len(rest) + 1:,}: byte 0x{byte:02X} is not {codec.upper()}"
            )
        if len(rest) > MAX_LINE_CHARACTERS:
            raise InputError(f"line {number:,} is longer than {MAX_LINE_CHARACTERS:,} characters")
    if rest:
        yield rest


def _decoded(
    decoder: codecs.IncrementalDecoder, codec: str, chunk: bytes, final: bool
) -> tuple[str, UnicodeDecodeError | None]:
    """Return the text up to the first invalid byte, and the error there."""
    before = decoder.getstate()
    try:
        try:
            return decoder.decode(chunk, final), None
        except UnicodeDecodeError as error:
            decoder.setstate(before)
            good = max(0, len(chunk) - len(error.object) + error.start)
            return decoder.decode(chunk[:good]), error
    except UnicodeError as error:
        raise InputError(
            f"the input is not {codec.upper()} ({error}); for UTF-16 without a byte order mark, use "
            "--encoding utf-16-le or utf-16-be"
        ) from error


def _with_last(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def _not_utf8(chunks: Iterable[bytes]) -> tuple[str, bool]:
    """Describe the first byte that is not UTF-8; return also whether earlier lines have non-ASCII UTF-8."""
    mixed = False
    try:
        for line in text_lines(chunks, "utf-8"):
            mixed = mixed or not line.isascii()
    except InputError as error:
        return str(error), mixed
    return "it is not UTF-8", mixed


class _Evidence:
    """Evidence for and against Chinese in GB18030, gathered line by line."""

    def __init__(self) -> None:
        self.invalid = False
        self._seen = self._common = 0
        self._odd_line: str | None = None
        self._korean = True

    def add(self, number: int, line: str) -> None:
        """Evaluate a line that was decoded as GB18030."""
        if line.isascii():
            return
        common = sum(each in _COMMON for each in line)
        others = [each for each in line if not each.isascii() and each not in _COMMON]
        odd = [each for each in others if each not in _RARE and len(each.encode("gb18030")) == 2]
        self._common += common
        self._seen += common + len(others)
        raw = line.encode("gb18030")
        self._korean = self._korean and _reads_as_korean(raw)
        if self._odd_line is None:
            if len(odd) > common or any(each not in _COMMON for each in _IN_A_WORD.findall(line)):
                self._odd_line = f"line {number:,} would be {short_repr(line.strip())}"
            elif _reads_as_utf8(raw, line):
                self._odd_line = f"line {number:,} reads as UTF-8, but others do not"

    def problem(self) -> str | None:
        """Return why the file is not Chinese in GB18030; ``None`` if it is."""
        if self._odd_line is not None:
            return self._odd_line
        if self.invalid:
            return "some bytes are invalid in it"
        if self._common < max(1, _MIN_COMMON * self._seen):
            return f"only {self._common:,} of {self._seen:,} characters would be common ones"
        if self._korean:
            return "it could equally be Korean in EUC-KR"
        return None


def _reads_as_korean(raw: bytes) -> bool:
    """Whether the bytes decode as EUC-KR with only Hangul letters."""
    try:
        text = raw.decode("euc_kr")
    except UnicodeDecodeError:
        return False
    return all(each.isascii() or "가" <= each <= "힣" or not each.isalpha() for each in text)


def _reads_as_utf8(raw: bytes, line: str) -> bool:
    """Whether the bytes are UTF-8, not by coincidence: a three-byte character, or an accent within a word."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return max(text) > "\u07ff" or re.search(r"[a-z][^\x00-\x7f]", line) is not None
