"""The command ``zimage cancel``: asks that requests be ended, and waits for what becomes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import OFFSET_BEGINNING

from zimage_stream.cli.context import settings_of
from zimage_stream.cli.printing import plain_fields, print_json
from zimage_stream.cli.status.backlog import read_backlog
from zimage_stream.cli.status.where import Unresolved, Wanted, find_unresolved, results_in
from zimage_stream.cli.terminal import print_line
from zimage_stream.deadline import Deadline
from zimage_stream.errors import RequestError
from zimage_stream.escaping import NAME_CHARACTERS, shortened
from zimage_stream.events import strict_json
from zimage_stream.events.cancellation import Cancellation, check_reason
from zimage_stream.events.codec import Codec, create_codec
from zimage_stream.events.image_result import ImageResult, Source, Status
from zimage_stream.events.rules import MAX_NAME_CHARACTERS, check_batch_id, check_name
from zimage_stream.kafka.canceller import Canceller
from zimage_stream.kafka.offsets import OffsetClient
from zimage_stream.kafka.reader import POLL_S, TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.settings import Settings

SOURCE = "/zimage/cli"
"""Value of the header ``ce_source`` of the command's cancellations."""
TIMEOUT_S = 30.0


class Outcome(StrEnum):
    """What became of the wish to cancel a request."""

    CANCELLED = "cancelled"
    ENDED_BEFORE = "ended_before"
    NOT_FOUND = "not_found"
    ASKED = "asked"


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome for one record of a request, or for an id without a record.

    Attributes:
        status: how the request ended; ``None`` if it has not, or was not found.
        partition: location of the record in the requests topic, with ``offset``.
    """

    request_id: str
    outcome: Outcome
    tenant: str | None = None
    status: Status | None = None
    partition: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        what = {
            Outcome.CANCELLED: "cancelled",
            Outcome.ENDED_BEFORE: f"ended before as {self.status}",
            Outcome.NOT_FOUND: "not found",
            Outcome.ASKED: "asked, not ended yet",
        }
        return f"{shortened(self.request_id, NAME_CHARACTERS)}: {what[self.outcome]}"


def cancel(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Requests.", show_default=False)
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="ID", help="All requests of a batch, instead of IDs.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file of ids, instead of IDs: one per line; - is stdin."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only requests of this tenant.")] = None,
    reason: Annotated[str | None, typer.Option(help="Repeated in the result's error message.")] = None,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait this long for the results.")
    ] = TIMEOUT_S,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Ask that requests be ended, and show what became of each.

    A line of the file may also be a JSON object with the key request_id, as
    zimage produce --json prints it. Exit code 1: a request was not found or has
    not ended yet, or partitions without a leader make the answer incomplete.

    Example: zimage cancel --batch spring
    """
    if sum(bool(each) for each in (ids, batch is not None, file is not None)) != 1:
        raise typer.BadParameter("give either IDs, --batch or --file", param_hint="ID")
    check_reason(reason)
    if tenant is not None:
        check_name("tenant", tenant)
    check_batch_id(batch)
    for request_id in ids or ():
        check_name("request_id", request_id)
    names = read_ids(file) if file is not None else list(dict.fromkeys(ids or ()))
    settings = settings_of(context)
    with create_codec(settings.registry) as codec:
        run = _Run(settings, codec, names, batch, tenant, json)
        raise typer.Exit(0 if run.cancel(reason, timeout) else 1)


class _Run:
    """One run of the command.

    Args:
        ids: the requests to cancel, without repetitions, unless a batch is given.
    """

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        ids: Sequence[str],
        batch: str | None,
        tenant: str | None,
        json: bool,
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._ids = ids
        self._batch = batch
        self._wanted = Wanted(None if batch is not None else frozenset(ids), batch, tenant)
        self._json = json
        self._all_well = True

    def cancel(self, reason: str | None, timeout_s: float) -> bool:
        """Cancel and report; return whether every request has ended, as far as can be known."""
        pending = self._unresolved()
        with TopicReader(self._settings.kafka, self._settings.topics.results) as reader:
            reader.start(dict.fromkeys(self._readable_results(), OFFSET_BEGINNING))
            # After the backlog: a request that was resolved meanwhile has its result by now.
            self._report_ended(pending, self._results(reader.read_to_end()))
            self._send(pending, reason)
            self._wait(pending, reader, Deadline(timeout_s))
        for each in pending.values():
            report = Report(each.request_id, Outcome.ASKED, each.tenant, None, each.partition, each.offset)
            self._report(report)
        return self._all_well

    def _unresolved(self) -> dict[Source, Unresolved]:
        """Find the unresolved records of the requests."""
        backlog = read_backlog(self._settings)
        topic = self._settings.topics.requests
        self._note_leaderless(topic, backlog.leaderless)
        return {
            Source(topic=topic, partition=each.partition, offset=each.offset): each
            for each in find_unresolved(self._settings, backlog, self._codec, self._wanted)
        }

    def _readable_results(self) -> list[int]:
        topic = self._settings.topics.results
        partitions = OffsetClient(self._settings.kafka).partitions(topic)
        led = [number for number, has_leader in partitions.items() if has_leader]
        self._note_leaderless(topic, sorted(partitions.keys() - led))
        return led

    def _note_leaderless(self, topic: str, numbers: Sequence[int]) -> None:
        if numbers:
            listed = ", ".join(map(str, numbers))
            print_line(f"{topic}: partition {listed} has no leader; its records could not be read", err=True)
            self._all_well = False

    def _results(self, records: Iterable[Record]) -> Iterator[ImageResult]:
        return results_in(records, self._codec, self._wanted)

    def _report_ended(self, pending: dict[Source, Unresolved], results: Iterable[ImageResult]) -> None:
        """Report the requests that have ended and those that do not exist; remove the former from pending.

        An id may have several records. Those that were unresolved count; without any, the last one does.
        """
        unresolved = {(each.tenant, each.request_id) for each in pending.values()}
        last: dict[tuple[str, str], ImageResult] = {}
        for result in results:
            name = (result.tenant, result.request_id)
            if pending.pop(result.source, None):
                self._report(_ended(result, Outcome.ENDED_BEFORE))
            elif name not in last or last[name].completed_at <= result.completed_at:
                last[name] = result
        for name, result in last.items():
            if name not in unresolved:
                self._report(_ended(result, Outcome.ENDED_BEFORE))
        found = {request_id for _, request_id in unresolved | last.keys()}
        for request_id in self._ids:
            if request_id not in found:
                self._report(Report(request_id, Outcome.NOT_FOUND))
        if self._batch is not None and not found:
            print_line(f"batch {self._batch}: no request is waiting, and no result of it is left", err=True)
            self._all_well = False

    def _send(self, pending: Mapping[Source, Unresolved], reason: str | None) -> None:
        now = datetime.now(UTC)
        # A batch may have requests whose id is not valid and does not fit; ``source`` is what counts.
        cancellations = [
            Cancellation(
                request_id=each.request_id[:MAX_NAME_CHARACTERS],
                tenant=each.tenant[:MAX_NAME_CHARACTERS],
                source=source,
                reason=reason,
                requested_at=now,
            )
            for source, each in pending.items()
        ]
        kafka, names = self._settings.kafka, self._settings.topics
        with closing(Canceller(kafka, names.cancellations, self._codec, SOURCE)) as canceller:
            canceller.send(cancellations)

    def _wait(self, pending: dict[Source, Unresolved], reader: TopicReader, deadline: Deadline) -> None:
        """Report requests as they end, and remove them from pending."""
        try:
            while pending and not deadline.passed:
                record = reader.poll(deadline.within(POLL_S))
                for result in self._results([record] if record else []):
                    if pending.pop(result.source, None):
                        cancelled = result.status is Status.CANCELLED
                        self._report(_ended(result, Outcome.CANCELLED if cancelled else Outcome.ENDED_BEFORE))
        except KeyboardInterrupt:
            print_line(err=True)
            print_line(
                f"cancellations were sent for {len(pending):,} request(s) that have not ended yet", err=True
            )
            raise

    def _report(self, report: Report) -> None:
        if report.outcome in (Outcome.NOT_FOUND, Outcome.ASKED):
            self._all_well = False
        if self._json:
            print_json(plain_fields(report))
        else:
            print_line(str(report))


def _ended(result: ImageResult, outcome: Outcome) -> Report:
    source = result.source
    return Report(result.request_id, outcome, result.tenant, result.status, source.partition, source.offset)


def read_ids(file: str) -> list[str]:
    """Read the ids in a file, without repetitions; ``-`` is standard input."""
    where = "the input" if file == "-" else file
    ids: dict[str, None] = {}
    try:
        # Bytes that are not UTF-8 must reach the check of the id that they are part of.
        lines = (
            (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
            .decode("utf-8-sig", errors="surrogateescape")
            .splitlines()
        )
    except OSError as error:
        raise typer.BadParameter(f"{where}: {error.strerror}", param_hint="--file") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                ids[_id_in(line.strip())] = None
            except (RequestError, strict_json.InvalidJsonError) as error:
                raise typer.BadParameter(f"{where}: line {number}: {error}", param_hint="--file") from error
    if not ids:
        raise typer.BadParameter(f"{where}: it is empty, takes one id per line", param_hint="--file")
    return list(ids)


def _id_in(line: str) -> str:
    """Return the id in a line: the line itself, or the value of ``request_id`` in a JSON object.

    Raises:
        RequestError: it is not a valid id.
        InvalidJsonError: the line begins an object, but is not JSON.
    """
    request_id: str = strict_json.loads(line).get("request_id") if line.startswith("{") else line
    check_name("request_id", request_id)
    return request_id
