"""What a large backlog costs: time and memory per request as the backlog and the number of tenants grow.

One worker whose device takes no time at all, 64x64 images, a directory in memory as the store. All requests
are queued before the worker starts, and it serves all of them. The time is the worker's own pipeline per
request, from the first generation to the last commit. The memory is the worker process's peak. The window is
the default, 16,384 requests.

    python -m tests.services run --no-registry -- python -m benchmarks.growth
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

from benchmarks.peers_kafka import MEMORY
from benchmarks.report import Cell, Plot, Report, parser, publish
from benchmarks.workers import Workers, answers, fresh_settings, peak_resident_bytes
from zimage_stream import PromptClient, PromptRequest

BACKLOGS = (1_000, 10_000, 100_000)
TENANTS = (1, 100, 10_000)
MIDDLE = 10_000
"""Backlog while the tenants grow, tenants' share of it 1 and more each."""


@dataclass(frozen=True)
class Seen:
    """Milliseconds of a request, and the worker's bytes."""

    backlog: int
    tenants: int
    milliseconds: float
    peak: int


def main() -> None:
    options = parser(__doc__, "small backlogs")
    arguments = options.parse_args()
    backlogs, tenants, middle = ((50, 200), (1, 20), 200) if arguments.quick else (BACKLOGS, TENANTS, MIDDLE)
    by_backlog = [serve(backlog, 1) for backlog in backlogs]
    by_tenants = [serve(middle, count) for count in tenants]
    rows: list[list[Cell]] = [
        [seen.backlog, seen.tenants, seen.milliseconds, seen.peak / 2**20]
        for seen in (*by_backlog, *by_tenants)
    ]
    first, last = by_backlog[0], by_backlog[-1]
    one, many = by_tenants[0], by_tenants[-1]
    findings = [
        f"From {first.backlog:,} to {last.backlog:,} waiting requests, the time per request changes by "
        f"{last.milliseconds / first.milliseconds - 1:+.0%}; from {one.tenants:,} to {many.tenants:,} "
        f"tenants by {many.milliseconds / one.milliseconds - 1:+.0%}.",
        f"At most {max(seen.peak for seen in (*by_backlog, *by_tenants)) / 2**20:.0f} MiB of memory.",
    ]
    series = {
        "by backlog": [(seen.backlog, seen.milliseconds) for seen in by_backlog],
        f"by tenants, backlog {middle:,}": [(seen.tenants, seen.milliseconds) for seen in by_tenants],
    }
    publish(
        Report(
            ("backlog", "tenants", "ms per request", "peak, MiB"),
            rows,
            findings,
            Plot("lines", "waiting requests or tenants", "ms per request", series, log="x"),
        ),
        arguments,
    )


def serve(backlog: int, tenants: int) -> Seen:
    """Queue all of it, then have it served."""
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        fresh_settings(
            engine={"kind": "simulated", "simulated_ms": 0.0},
            store={"kind": "directory", "path": folder},
        ) as settings,
    ):
        with PromptClient(settings) as client:
            client.submit_many(
                PromptRequest(
                    prompt=f"picture {number}", tenant=f"tenant-{number % tenants}", width=64, height=64
                )
                for number in range(backlog)
            )
        with answers(settings) as take, Workers(settings, "--no-supervise") as worker:
            results = take(backlog)
            peak = peak_resident_bytes(worker.pid)
        started = min(result.started_at for result in results if result.started_at is not None)
        took = (max(result.completed_at for result in results) - started).total_seconds()
    return Seen(backlog, tenants, 1e3 * took / backlog, peak)


if __name__ == "__main__":
    main()
