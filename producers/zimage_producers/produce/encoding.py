"""The encoding of a file: said by its user, by its mark, or told from its bytes where they leave no doubt.

One that has no mark and is no UTF-8 is taken for GB18030 only if it reads as Chinese: nearly every byte
above 0x7F is half of *some* character of GB18030, so that decoding alone proves nothing.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from zimage_producers.produce.rows import InputError
from zimage_stream.errors import shorten

MAX_LINE_CHARACTERS = 4 << 20
"""More than any request may have; what has no line ends is not gathered for ever."""

_MARKS = (
    # UTF-32's begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
    ("\ufeff".encode("gb18030"), "gb18030", "GB18030"),
)
_MARK = "\ufeff"
_OF_HOST_NAMES = ("idna", "punycode")
_END = re.compile(r"\r\n|\r|\n")
_MIN_COMMON = 0.7
"""Of the characters of two bytes; of Chinese prompts nearly all are, of Big5 read as GB18030 a third."""


def _rows(first: int, last: int) -> frozenset[str]:
    """The characters in these rows of GB 2312."""
    cells = (bytes((row, cell)) for row in range(first, last + 1) for cell in range(0xA1, 0xFF))
    return frozenset("".join(cell.decode("gb2312", "ignore") for cell in cells))


_COMMON = _rows(0xA1, 0xA1) | _rows(0xA3, 0xA3) | _rows(0xB0, 0xD7)
"""Punctuation, full-width forms, and the 3,755 characters of the first level."""

_RARE = _rows(0xD8, 0xF7)
_IN_A_WORD = re.compile(r"[A-Za-z]([^\x00-\x7f])(?=[A-Za-z])")
_REMEDY = "save the file as UTF-8, or say what it is: --encoding cp1252, big5, gb18030, …"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How bytes become text: the codec, its name for people, and why it was taken if that was a choice."""

    codec: str
    shown: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.shown} ({self.why})" if self.why else self.shown


UTF_8 = Encoding("utf-8", "UTF-8")


def named(name: str) -> Encoding:
    """The encoding of that name.

    Raises:
        InputError: there is no such encoding of text.
    """
    try:
        "".encode(name)
        found = codecs.lookup(name).name
        if found in _OF_HOST_NAMES:
            raise LookupError
    except (LookupError, ValueError):
        raise InputError(
            f"--encoding: got {shorten(name)}, takes the name of an encoding such as utf-8, gb18030, big5, "
            "cp1252 or shift_jis"
        ) from None
    return Encoding("utf-8" if found == "utf-8-sig" else found, found.upper(), "as asked for")


def marked(head: bytes) -> Encoding | None:
    """What the mark at the beginning says, if there is one.

    Raises:
        InputError: there is none, and NULs among the first bytes say that it is needed.
    """
    for mark, codec, shown in _MARKS:
        if head.startswith(mark):
            return Encoding(codec, shown, "" if codec == "utf-8" else "by its mark")
    if head.count(0) > len(head) // 5:
        raise InputError(
            f"byte {head.index(0) + 1:,} is 0, as in UTF-16, but there is no mark at the beginning: save the "
            "file as UTF-8, or say --encoding utf-16-le or utf-16-be"
        )
    return None


def detected(chunks: Callable[[], Iterable[bytes]]) -> Encoding:
    """The encoding of a whole file without a mark, which may be read twice.

    Args:
        chunks: reads the file from its beginning.

    Raises:
        InputError: it is neither UTF-8 nor plausible GB18030, or a mixture.
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
            raise InputError(f"{where}, and lines before it are UTF-8: it has two encodings; mend that line")
        raise InputError(f"{where}, and for GB18030 it is not taken, since {problem}: {_REMEDY}")
    return Encoding("gb18030", "GB18030", "it is no UTF-8, and reads as Chinese")


def text_lines(chunks: Iterable[bytes], codec: str) -> Iterator[str]:
    """The lines with their ends, as soon as they are there. A mark at the beginning is dropped.

    Raises:
        InputError: names line, column and byte of what is not in that encoding.
    """
    decoder = codecs.getincrementaldecoder(codec)()
    # Keeps the two halves of a line end together.
    ends = io.IncrementalNewlineDecoder(None, translate=False)
    number, rest, first = 1, "", True
    for chunk, final in _with_last(chunks):
        text, error = _decoded(decoder, codec, chunk, final)
        if first and text:
            text = text.lstrip(_MARK)
            first = not text
        text, begin = ends.decode(text, final or error is not None), 0
        for found in _END.finditer(text):
            yield rest + text[begin : found.end()]
            rest, begin, number = "", found.end(), number + 1
        rest += text[begin:]
        if error is not None:
            byte = error.object[error.start]
            raise InputError(
                f"line {number:,}, column {len(rest) + 1:,}: byte 0x{byte:02X} is no {codec.upper()}"
            )
        if len(rest) > MAX_LINE_CHARACTERS:
            raise InputError(f"line {number:,} is longer than {MAX_LINE_CHARACTERS:,} characters")
    if rest:
        yield rest


def _decoded(
    decoder: codecs.IncrementalDecoder, codec: str, chunk: bytes, final: bool
) -> tuple[str, UnicodeDecodeError | None]:
    """The text up to the first byte that is not in the encoding, and the error there."""
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
            f"the input is no {codec.upper()} ({error}); UTF-16 without a mark at the beginning is "
            "--encoding utf-16-le or utf-16-be"
        ) from error


def _with_last(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def _not_utf8(chunks: Iterable[bytes]) -> tuple[str, bool]:
    """Where UTF-8 ends, and whether there was some."""
    mixed = False
    try:
        for line in text_lines(chunks, "utf-8"):
            mixed = mixed or not line.isascii()
    except InputError as error:
        return str(error), mixed
    return "it is no UTF-8", mixed


class _Evidence:
    """What speaks for and against Chinese in GB18030, gathered line by line."""

    def __init__(self) -> None:
        self.invalid = False
        self._seen = self._common = 0
        self._odd_line: str | None = None
        self._korean = True

    def add(self, number: int, line: str) -> None:
        """Take in a line as it reads in GB18030."""
        if line.isascii():
            return
        common = sum(sign in _COMMON for sign in line)
        others = [sign for sign in line if not sign.isascii() and sign not in _COMMON]
        odd = [sign for sign in others if sign not in _RARE and len(sign.encode("gb18030")) == 2]
        self._common += common
        self._seen += common + len(others)
        raw = line.encode("gb18030")
        self._korean = self._korean and _reads_as_korean(raw)
        if self._odd_line is None:
            if len(odd) > common or any(sign not in _COMMON for sign in _IN_A_WORD.findall(line)):
                self._odd_line = f"line {number:,} would be {shorten(line.strip())}"
            elif _reads_as_utf8(raw, line):
                self._odd_line = f"line {number:,} reads as UTF-8, and others do not"

    def problem(self) -> str | None:
        """Why it is not Chinese in GB18030."""
        if self._odd_line is not None:
            return self._odd_line
        if self.invalid:
            return "not all of its bytes are"
        if self._common < max(1, _MIN_COMMON * self._seen):
            return f"{self._common:,} of {self._seen:,} characters would be common ones"
        if self._korean:
            return "it could as well be Korean in EUC-KR"
        return None


def _reads_as_korean(raw: bytes) -> bool:
    """Whether it reads in EUC-KR, and every letter in it is Hangul."""
    try:
        text = raw.decode("euc_kr")
    except UnicodeDecodeError:
        return False
    return all(sign.isascii() or "가" <= sign <= "힣" or not sign.isalpha() for sign in text)


def _reads_as_utf8(raw: bytes, line: str) -> bool:
    """Whether that is no coincidence: a character of three bytes, or an accented letter within a word."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return max(text) > "\u07ff" or re.search(r"[a-z][^\x00-\x7f]", line) is not None
