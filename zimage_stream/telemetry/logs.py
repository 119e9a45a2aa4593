"""Logging to stderr, as JSON lines for machines or in a short form for people."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from pythonjsonlogger.core import LogData
from pythonjsonlogger.json import JsonFormatter

from zimage_stream.errors import RequestError, short_repr
from zimage_stream.escaping import (
    LINE_CHARACTERS,
    NAME_CHARACTERS,
    LineFormatter,
    escaped,
    escaped_lines,
    is_utf8,
    shortened,
    shortened_lines,
)
from zimage_stream.masking import masked
from zimage_stream.settings import TelemetrySettings

REQUEST_FIELDS = ("request_id", "tenant", "partition", "offset", "attempt")
"""Fields of every line about a request, in addition to the worker's ``slot``."""
QUOTED = "quoted"
"""Name of the field with the output of another program."""
_SENTENCES = ("message", "prompt")
_TEXTS = ("exc_info", "stack_info", QUOTED)


class _Fields(logging.Filter):
    """Adds the slot to each record, and removes prompts unless they may be logged."""

    def __init__(self, slot: str, prompts: bool) -> None:
        super().__init__()
        self._slot = slot
        self._prompts = prompts

    def filter(self, record: logging.LogRecord) -> bool:
        record.slot = self._slot
        if not self._prompts:
            # Prompts are private.
            record.__dict__.pop("prompt", None)
            if isinstance(record.args, tuple):
                record.args = tuple(_without_prompt(argument) for argument in record.args)
        return True


def _without_prompt(argument: object) -> object:
    """Remove the prompt that a RequestError quotes from an argument of a log line."""
    if isinstance(argument, RequestError) and argument.field == "prompt":
        return str(argument).replace(argument.got, "a prompt (not shown)")
    return argument


def _bounded(name: str, value: object) -> object:
    """Shorten a field's value, which may contain megabytes from a record or a server."""
    if name in _TEXTS:
        return shortened_lines(str(value)) if value else value
    text = str(value)
    short = shortened(text, LINE_CHARACTERS if name in _SENTENCES else NAME_CHARACTERS)
    return value if short == text else short


class _Json(JsonFormatter):
    def process_log_record(self, log_data: LogData) -> LogData:
        bounded = {name: _bounded(name, value) for name, value in log_data.items()}
        return super().process_log_record(bounded)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return escaped(masked(super().format(record)))


class _Console(LineFormatter):
    """Formats time, level, message, and the request it concerns: id, tenant, partition:offset, attempt.

    The quoted output of another program follows, indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        request_id, tenant, partition, offset, attempt = (
            getattr(record, name, None) for name in REQUEST_FIELDS
        )
        location = f"{partition}:{offset}" if offset is not None else None
        tries = f"attempt {attempt}" if attempt not in (None, 0, 1) else None
        parts = (str(each) for each in (request_id, tenant, location, tries) if each is not None)
        about = " ".join(shortened(each, NAME_CHARACTERS) for each in parts)
        prompt = getattr(record, "prompt", None)
        quoted = getattr(record, QUOTED, None)
        line = super().formatMessage(record) + escaped(f" [{about}]" if about else "")
        line += "" if prompt is None else f" {short_repr(prompt, LINE_CHARACTERS)}"
        return line if quoted is None else f"{line}\n  {escaped_lines(shortened_lines(quoted.rstrip()))}"


def configure(settings: TelemetrySettings, slot: str) -> None:
    """Send this process's log to stderr, in the format that the settings name.

    Values passed as ``extra`` become fields of the line, ``prompt`` only with ``log_prompts``. The length of
    a line is bounded, whatever its message and fields.

    Args:
        slot: added to every line, to distinguish the lines of several workers.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Fields(slot, settings.log_prompts))
    if settings.log_format == "json":
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(
            _Json(
                "%(asctime)s %(levelname)s %(name)s %(message)s",
                rename_fields=names,
                json_ensure_ascii=not is_utf8(sys.stderr),
            )
        )
    else:
        handler.setFormatter(_Console("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("zimage_stream", "zimage_consumers", "zimage_producers"):
        logging.getLogger(ours).setLevel(settings.log_level)
