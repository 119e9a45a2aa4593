"""The command ``zimage status``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from zimage_stream.cli.context import settings_of
from zimage_stream.cli.printing import age, plain_fields, print_json, print_result, print_table, table
from zimage_stream.cli.status.backlog import Backlog, OpenTransaction, Partition, read_backlog
from zimage_stream.cli.status.rate import Rate, results_since
from zimage_stream.cli.status.where import Phase, Unresolved, Wanted, find_results, find_unresolved
from zimage_stream.cli.terminal import print_line
from zimage_stream.escaping import NAME_CHARACTERS, shortened
from zimage_stream.events.codec import Codec, create_codec
from zimage_stream.kafka.offsets import OffsetClient
from zimage_stream.settings import Settings

RATE_WINDOW = timedelta(seconds=60)

_PHASES = {
    Phase.WAITING: "is waiting",
    Phase.RUNNING: "is being generated",
    Phase.SUSPECT: "is waiting to run alone, because a worker died while running it",
    Phase.UNCOMMITTED: "is waiting behind a producer's open transaction",
}


def status(
    context: typer.Context,
    request_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="A request; default: all.", show_default=False)
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The request's tenant; with an ID.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Include partitions without work.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show the unresolved requests, the workers that own them, and how long they will take.

    With an ID: show the request's result, or where it is waiting. Exit code 1:
    it was not found, or partitions without a leader make the answer incomplete.

    Example: zimage status
    """
    if request_id is None and tenant is not None:
        raise typer.BadParameter("it requires an ID", param_hint="--tenant")
    settings = settings_of(context)
    with create_codec(settings.registry) as codec:
        if request_id is not None:
            raise typer.Exit(0 if _one(settings, codec, request_id, tenant, json) else 1)
        raise typer.Exit(0 if _everything(settings, codec, all_, json) else 1)


def _everything(settings: Settings, codec: Codec, all_: bool, json: bool) -> bool:
    """Show the state of all requests; return whether it is complete."""
    backlog, now = read_backlog(settings), datetime.now(UTC)
    rate = results_since(settings, codec, now - RATE_WINDOW)
    whole = not (backlog.leaderless or rate.leaderless)
    if json:
        print_json(_as_dict(settings, backlog, rate, now))
        return whole
    for line in _summary(settings, backlog, rate, now):
        print_line(line)
    shown = [each for each in backlog.partitions if all_ or each.is_remarkable]
    if shown:
        rows = table(
            ">PARTITION",
            ">UNRESOLVED",
            ">NOT READ",
            ">STARTED",
            ">SUSPECT",
            ">BASE",
            ">END",
            ">OLDEST",
            "WORKER",
        )
        for each in shown:
            rows.add_row(*_cells(each, now))
        print_line()
        print_table(rows)
    return whole


def _summary(settings: Settings, backlog: Backlog, rate: Rate, now: datetime) -> Iterator[str]:
    workers = ", ".join(
        f"{shortened(m.name, NAME_CHARACTERS)} on {m.host} ({m.partitions})" for m in backlog.members
    )
    yield f"workers     {len(backlog.members)} in {settings.worker.group_id}, {backlog.state}"
    if workers:
        yield f"            {workers}"
    oldest = f", the oldest {age(now - backlog.oldest_at)} old" if backlog.oldest_at else ""
    yield f"unresolved  {backlog.unresolved:,}{oldest}"
    if backlog.waiting:
        yield f"not read    {backlog.waiting:,} behind open transactions of producers"
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(rate.counts.items()))
    yield f"results     {rate.per_s(now):.2f}/s, in the last minute {kinds or 'none'}"
    if backlog.unresolved:
        drain = rate.time_to_drain(backlog.unresolved, now)
        yield f"drained in  {'unknown: no results' if drain is None else age(drain) + ' at this rate'}"
    for topic, numbers in _leaderless(settings, backlog.leaderless, rate.leaderless).items():
        listed = ", ".join(map(str, numbers))
        yield f"NO LEADER   {topic}: partition {listed}; its records are not counted and cannot be read"
    for each in backlog.partitions:
        if each.transaction:
            yield from _open_transaction(settings, each.number, each.transaction, now)
        if each.past_end and each.log:
            yield (
                f"PAST END    partition {each.number}: the group's offset is {each.checkpoint.base}, and the "
                f"log ends at {each.log.high}: the topic was recreated, or its log was truncated. Requests "
                f"below that offset are not served; reset the group's offset for this partition"
            )
        if each.lost:
            yield (
                f"LOST        partition {each.number}: {each.lost:,} requests were deleted from the log "
                f"before they were served; its worker is waiting: reset the group's offset for this partition"
            )
        if each.damaged:
            yield f"checkpoint  partition {each.number}: its metadata is unusable: {shortened(each.damaged)}"


def _open_transaction(
    settings: Settings, number: int, transaction: OpenTransaction, now: datetime
) -> Iterator[str]:
    topic, servers = settings.topics.requests, settings.kafka.bootstrap_servers
    tool = f"kafka-transactions.sh --bootstrap-server {servers}"
    since = age(now - transaction.since)
    name = transaction.source
    source = shortened(name, NAME_CHARACTERS) if name else "an unknown producer (no header ce_source)"
    yield (
        f"OPEN        partition {number}: {transaction.waiting:,} records are waiting behind a transaction "
        f"begun {since} ago at offset {transaction.offset} by {source}. They are served once the producer "
        f"ends it, or once the broker does so after the producer's transaction.timeout.ms"
    )
    yield f"            owner: {tool} describe-producers --topic {topic} --partition {number}"
    yield (
        f"            abort: {tool} abort --topic {topic} --partition {number} "
        f"--start-offset {transaction.offset}"
    )


def _leaderless(settings: Settings, requests: list[int], results: list[int]) -> dict[str, list[int]]:
    found = {settings.topics.requests: requests, settings.topics.results: results}
    return {topic: numbers for topic, numbers in found.items() if numbers}


def _cells(each: Partition, now: datetime) -> tuple[str, ...]:
    return (
        str(each.number),
        f"{each.unresolved:,}" if each.log else "?",
        f"{each.waiting:,}" if each.log else "?",
        str(each.started),
        str(each.suspects),
        str(each.checkpoint.base),
        str(each.log.high) if each.log else "?",
        age(now - each.oldest_at) if each.oldest_at else "",
        shortened(each.worker, NAME_CHARACTERS) if each.worker else "no worker",
    )


def _as_dict(settings: Settings, backlog: Backlog, rate: Rate, now: datetime) -> dict[str, Any]:
    drain = rate.time_to_drain(backlog.unresolved, now)
    return {
        "group": settings.worker.group_id,
        "state": backlog.state,
        "unresolved": backlog.unresolved,
        "behind_transactions": backlog.waiting,
        "leaderless": _leaderless(settings, backlog.leaderless, rate.leaderless),
        "oldest_at": _iso(backlog.oldest_at),
        "results_per_s": rate.per_s(now),
        "results": dict(rate.counts),
        "drained_in_s": None if drain is None else drain.total_seconds(),
        "workers": [asdict(member) for member in backlog.members],
        "partitions": [
            {
                "partition": each.number,
                "unresolved": each.unresolved if each.log else None,
                "started": each.started,
                "suspects": each.suspects,
                "base": each.checkpoint.base,
                "end": each.log and each.log.end,
                "high": each.log and each.log.high,
                "transaction": each.transaction and plain_fields(each.transaction),
                "lost": each.lost,
                "past_end": each.past_end,
                "oldest_at": _iso(each.oldest_at),
                "worker": each.worker,
            }
            for each in backlog.partitions
        ],
    }


def _one(settings: Settings, codec: Codec, request_id: str, tenant: str | None, json: bool) -> bool:
    """Show what is known about a request; return whether anything is known."""
    # The backlog first: a request that is resolved meanwhile has its result by the time results are read.
    backlog, wanted = read_backlog(settings), Wanted(frozenset((request_id,)), tenant=tenant)
    waiting = list(find_unresolved(settings, backlog, codec, wanted))
    partitions = OffsetClient(settings.kafka).partitions(settings.topics.results)
    led = [number for number, has_leader in partitions.items() if has_leader]
    results = list(find_results(settings, led, codec, wanted))
    unseen = _leaderless(settings, backlog.leaderless, sorted(partitions.keys() - led))
    answered = {(result.source.partition, result.source.offset) for result in results}
    waiting = [each for each in waiting if (each.partition, each.offset) not in answered]
    for result in results:
        print_result(result, json=json)
    for each in waiting:
        if json:
            print_json({"status": None, **plain_fields(each)})
        else:
            print_line(_line(each))
    if not waiting and not results:
        print_line(f"request {request_id} is not waiting, and no result of it is left", err=True)
    for topic, numbers in unseen.items():
        listed = ", ".join(map(str, numbers))
        print_line(f"{topic}: partition {listed} has no leader; its records could not be read", err=True)
    return bool(waiting or results)


def _line(each: Unresolved) -> str:
    waited = age(datetime.now(UTC) - each.written_at)
    parts = [
        f"{shortened(each.request_id, NAME_CHARACTERS)} {_PHASES[each.phase]}",
        f"{waited} old",
        f"partition {each.partition}, offset {each.offset}",
        f"{each.ahead:,} unresolved before it",
        f"owned by {shortened(each.worker, NAME_CHARACTERS)}"
        if each.worker
        else "owned by no worker: none is running",
    ]
    if each.attempts:
        parts.append(f"{each.attempts} attempt(s) used")
    return "; ".join(parts)


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds")
