"""How long a light user waits behind a heavy one.

One worker. One tenant has thousands of requests queued when 20 others arrive with one request each, more than
two service times apart. Their *wait* is the time from the request to the start of its generation, in service
times. Compared are this project's scheduler, the same worker with everybody under one tenant (which makes it
first in, first out), and the Redis and RQ stack, which is first in, first out by nature. The last case is a
window smaller than the heavy tenant's backlog: the worker cannot see beyond what it has fetched, so this is
where fairness ends.

Images are small and the device is slow for their size, so that only the order matters. At 20 ms per image the
pipeline's own milliseconds show in the wait; no real model is that fast.

    python -m tests.services run --no-registry -- python -m benchmarks.fairness
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.report import Cell, Report, parser, publish
from benchmarks.seed_stack import SeedStack
from benchmarks.workers import Workers, answers, fresh_settings, percentile, until
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.settings import Settings

SIDE = 64
HEAVY, LIGHT = 5_000, 20
APART = 2.5
"""Service times between two light users."""
SMALL_WINDOW = 1_000


def main() -> None:
    options = parser(__doc__, "a small backlog and few users")
    arguments = options.parse_args()
    heavy, light = (100, 3) if arguments.quick else (HEAVY, LIGHT)
    slow, fast = (0.05, 0.02) if arguments.quick else (0.32, 0.02)
    window = heavy // 5 if arguments.quick else SMALL_WINDOW
    runs: list[tuple[str, float, list[float]]] = []
    for name, service_s, one_tenant, worker in (
        ("this project", slow, False, {}),
        ("this project", fast, False, {}),
        ("this project, everybody one tenant", fast, True, {}),
        (f"this project, a window of {window:,}", fast, False, {"window": window}),
    ):
        with fresh_settings(engine=_engine(service_s), worker=worker) as settings:
            runs.append((name, service_s, ours(settings, service_s, heavy, light, one_tenant)))
    with fresh_settings(engine=_engine(fast)) as settings:
        runs.append(("Redis and RQ", fast, theirs(settings, fast, heavy, light)))
    rows: list[list[Cell]] = []
    for name, service_s, waits in runs:
        times = [wait / service_s for wait in waits]
        rows.append([name, service_s, median(times), percentile(times, 0.95), percentile(waits, 0.95)])
    fair, same, in_line, _, queue = rows
    findings = [
        f"Behind {heavy:,} requests of another tenant, 95 % of the light users wait no longer than "
        f"{fair[3]:.2f} service times at {slow:g} s per image, and {same[3]:.2f} at {fast:g} s; "
        f"first in, first out: {in_line[3]:,.0f}; RQ: {queue[3]:,.0f}."
    ]
    columns = ("stack", "s per image", "median, service times", "p95, service times", "p95, s")
    publish(Report(columns, rows, findings, extra={"heavy": heavy, "light": light}), arguments)


def _engine(service_s: float) -> Mapping[str, Any]:
    # One by one: a batch would make the service time a matter of the order.
    return {"kind": "simulated", "simulated_ms": service_s * 1e3 * (1024 / SIDE) ** 2, "max_batch": 1}


def ours(settings: Settings, service_s: float, heavy: int, light: int, one_tenant: bool) -> list[float]:
    """Seconds that each light user waited."""
    with PromptClient(settings) as client:
        client.submit_many(_request("heavy", number) for number in range(heavy))
        with answers(settings) as take, Workers(settings) as workers:
            until(lambda: workers.lines("succeeded"), "it has begun")
            time.sleep(1.0)
            asked = {}
            for number in range(light):
                tenant = "heavy" if one_tenant else f"light-{number}"
                at = time.time()
                asked[client.submit(_request(tenant, number))] = at
                time.sleep(APART * service_s)
            waits: list[float] = []
            while len(waits) < light:
                (result,) = take(1)
                if result.request_id in asked and result.started_at is not None:
                    waits.append(result.started_at.timestamp() - asked[result.request_id])
    return waits


def _request(tenant: str, number: int) -> PromptRequest:
    return PromptRequest(prompt=f"picture {number}", tenant=tenant, width=SIDE, height=SIDE)


def theirs(settings: Settings, service_s: float, heavy: int, light: int) -> list[float]:
    """Seconds that each light user waited."""
    run = settings.topics.requests
    with SeedStack(settings) as stack:
        stack.submit((f"{run}-heavy-{number}" for number in range(heavy)), SIDE)
        asked = {}
        for number in range(light):
            at = time.time()
            (name,) = stack.submit([f"{run}-light-{number}"], SIDE)
            asked[name] = at
            time.sleep(APART * service_s)
        until(lambda: len(stack.done([*asked])) == light, "the light users are answered", 3_600)
        return [each.started - asked[each.name] for each in stack.done([*asked])]


if __name__ == "__main__":
    main()
