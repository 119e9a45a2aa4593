"""``zimage status``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from zimage_consumers.status.backlog import Backlog, Partition, read_backlog
from zimage_consumers.status.rate import Rate, results_since
from zimage_consumers.status.where import Phase, Unresolved, find_results, find_unresolved
from zimage_stream.events.codec import Codec
from zimage_stream.events.registry import Registry
from zimage_stream.printing import age, plain_fields, print_table, say_json, say_result, table
from zimage_stream.settings import Settings, load_settings
from zimage_stream.terminal import say

RATE_WINDOW = timedelta(seconds=60)

_PHASES = {
    Phase.WAITING: "waits",
    Phase.RUNNING: "is being generated",
    Phase.SUSPECT: "waits to run alone, since a worker died with it",
}


def status(
    context: typer.Context,
    request_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="A request; absent: all of them.", show_default=False)
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose request it is; with an ID.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Partitions without work too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Where things stand: what is unresolved, who works on it, and how long it will take.

    With an ID: the request's result, or where it waits.

    Example: zimage status
    """
    if request_id is None and tenant is not None:
        raise typer.BadParameter("it goes with an ID", param_hint="--tenant")
    settings = load_settings((context.obj or {}).get("config"))
    with closing(Codec(Registry(settings.registry) if settings.registry.url else None)) as codec:
        if request_id is not None:
            raise typer.Exit(0 if _one(settings, codec, request_id, tenant, json) else 1)
        _everything(settings, codec, all_, json)


def _everything(settings: Settings, codec: Codec, all_: bool, json: bool) -> None:
    backlog, now = read_backlog(settings), datetime.now(UTC)
    rate = results_since(settings, codec, now - RATE_WINDOW)
    if json:
        say_json(_as_dict(settings, backlog, rate, now))
        return
    for line in _summary(settings, backlog, rate, now):
        say(line)
    shown = [each for each in backlog.partitions if all_ or each.unresolved or each.lost or each.damaged]
    if shown:
        rows = table(
            ">PARTITION", ">UNRESOLVED", ">STARTED", ">SUSPECT", ">BASE", ">END", ">OLDEST", "WORKER"
        )
        for each in shown:
            rows.add_row(*_cells(each, now))
        say()
        print_table(rows)


def _summary(settings: Settings, backlog: Backlog, rate: Rate, now: datetime) -> Iterator[str]:
    workers = ", ".join(f"{m.name} on {m.host} ({m.partitions})" for m in backlog.members)
    yield f"workers     {len(backlog.members)} in {settings.worker.group_id}, {backlog.state}"
    if workers:
        yield f"            {workers}"
    oldest = f", the oldest {age(now - backlog.oldest_at)} old" if backlog.oldest_at else ""
    yield f"unresolved  {backlog.unresolved:,}{oldest}"
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(rate.counts.items()))
    yield f"results     {rate.per_s(now):.2f}/s, in the last minute {kinds or 'none'}"
    if backlog.unresolved:
        drain = rate.time_to_drain(backlog.unresolved, now)
        yield f"drained in  {'unknown: nothing moves' if drain is None else age(drain) + ' at this rate'}"
    for each in backlog.partitions:
        if each.lost:
            yield (
                f"LOST        partition {each.number}: {each.lost:,} requests were deleted from the log "
                f"before they were served; its worker waits for the group's offset to be reset"
            )
        if each.damaged:
            yield f"checkpoint  partition {each.number}: its metadata is not used: {each.damaged}"


def _cells(each: Partition, now: datetime) -> tuple[str, ...]:
    return (
        str(each.number),
        f"{each.unresolved:,}",
        str(each.started),
        str(each.suspects),
        str(each.checkpoint.base),
        str(each.end),
        age(now - each.oldest_at) if each.oldest_at else "",
        each.worker or "nobody",
    )


def _as_dict(settings: Settings, backlog: Backlog, rate: Rate, now: datetime) -> dict[str, Any]:
    drain = rate.time_to_drain(backlog.unresolved, now)
    return {
        "group": settings.worker.group_id,
        "state": backlog.state,
        "unresolved": backlog.unresolved,
        "oldest_at": _iso(backlog.oldest_at),
        "results_per_s": rate.per_s(now),
        "results": dict(rate.counts),
        "drained_in_s": None if drain is None else drain.total_seconds(),
        "workers": [asdict(member) for member in backlog.members],
        "partitions": [
            {
                "partition": each.number,
                "unresolved": each.unresolved,
                "started": each.started,
                "suspects": each.suspects,
                "base": each.checkpoint.base,
                "end": each.end,
                "lost": each.lost,
                "oldest_at": _iso(each.oldest_at),
                "worker": each.worker,
            }
            for each in backlog.partitions
        ],
    }


def _one(settings: Settings, codec: Codec, request_id: str, tenant: str | None, json: bool) -> bool:
    """Show what is known of a request; whether anything is."""
    # First where it may wait: what is resolved while we look has its result by the time we look there.
    waiting = list(find_unresolved(settings, read_backlog(settings), codec, request_id, tenant))
    results = list(find_results(settings, codec, request_id, tenant))
    answered = {(result.source.partition, result.source.offset) for result in results}
    waiting = [each for each in waiting if (each.partition, each.offset) not in answered]
    for result in results:
        say_result(result, json=json)
    for each in waiting:
        if json:
            say_json({"status": None, **plain_fields(each)})
        else:
            say(_line(each))
    if not waiting and not results:
        say(f"no request {request_id} waits, and no result of it is left", err=True)
    return bool(waiting or results)


def _line(each: Unresolved) -> str:
    waited = age(datetime.now(UTC) - each.written_at)
    parts = [
        f"{each.request_id} {_PHASES[each.phase]}",
        f"{waited} old",
        f"partition {each.partition}, offset {each.offset}",
        f"{each.ahead:,} before it there",
        f"held by {each.worker}" if each.worker else "held by nobody: no worker runs",
    ]
    if each.attempts:
        parts.append(f"{each.attempts} attempt(s) spent")
    return "; ".join(parts)


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds")
