"""How soon a killed worker is back, and what its death costs the other one.

Two workers under one supervisor, simulated engine, default settings, real Kafka, a directory as the store.
One of them is repeatedly killed with -9 in the middle of its work.

- *back*: seconds from the kill to the first image of the process that replaces it: half a second of
  back-off, its start, and the group's wait for the dead member (the session timeout, 8 s). A real model
  adds its loading time.
- *others' share*: images per second of the other worker from the kill until then, relative to the time
  before.

    python -m tests.services run --no-registry -- python -m benchmarks.recovery
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from datetime import UTC, datetime
from statistics import median

from benchmarks.report import Report, parser, publish
from benchmarks.workers import Workers, fresh_settings, until
from zimage_stream import PromptClient, PromptRequest

PICTURE_MS = 50.0
BEFORE_S = 8.0
"""Undisturbed work before each kill; the other's rate is measured in its second half."""


def main() -> None:
    options = parser(__doc__, "one kill, soon")
    options.add_argument("--kills", type=int, default=8)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, before_s = (1, 4.0) if arguments.quick else (arguments.kills, BEFORE_S)
        rows = measure(kills, before_s, folder)
    backs, shares = zip(*rows, strict=True)
    findings = [
        f"A killed worker is back after {median(backs):.1f} s (median), {max(backs):.1f} s at most; the "
        f"other one generates at {median(shares):.2f} of its rate meanwhile (median), {min(shares):.2f} at "
        f"least."
    ]
    table = [[number, *row] for number, row in enumerate(rows, 1)]
    publish(Report(("kill", "back, s", "others' share"), table, findings), arguments)


def measure(kills: int, before_s: float, folder: str) -> list[tuple[float, float]]:
    """Seconds until the killed worker is back, and the other's share meanwhile, for each kill."""
    # 256x256 takes a 16th of the reference; batches of one, so that the rate is even.
    engine = {"kind": "simulated", "simulated_ms": PICTURE_MS * 16, "max_batch": 1}
    store = {"kind": "directory", "path": folder}
    rows = []
    with (
        fresh_settings(engine=engine, store=store) as settings,
        Workers(settings, "--devices", "cpu:2") as workers,
        PromptClient(settings) as client,
    ):
        until(lambda: len(workers.lines("took over partitions")) >= 2, "both have partitions")
        enough = int((kills + 1) * (before_s + 20) * 2 * 1e3 / PICTURE_MS)
        client.submit_many(
            PromptRequest(prompt=f"picture {number}", width=256, height=256) for number in range(enough)
        )
        until(lambda: all(times(workers, slot) for slot in workers.processes()), "both make pictures")
        for number in range(kills):
            time.sleep(before_s)
            rows.append(kill(workers, sorted(workers.processes())[number % 2], before_s))
    return rows


def kill(workers: Workers, slot: str, before_s: float) -> tuple[float, float]:
    """Kill the worker in this slot, and wait until it makes pictures again."""
    killed = time.time()
    os.kill(workers.processes()[slot], signal.SIGKILL)

    def back() -> float:
        return next((at for at in times(workers, slot) if at > killed + 0.5), 0.0)

    at = until(back, f"{slot} makes pictures again")
    (other,) = workers.processes().keys() - {slot}
    done = times(workers, other)
    before = sum(killed - before_s / 2 <= each < killed for each in done) / (before_s / 2)
    meanwhile = sum(killed <= each < at for each in done) / (at - killed)
    return at - killed, meanwhile / before


def times(workers: Workers, slot: str) -> list[float]:
    """When this slot's results were out, in UNIX time."""
    lines = workers.lines("succeeded")
    return [
        datetime.fromisoformat(line["time"]).astimezone(UTC).timestamp()
        for line in lines
        if line["slot"] == slot
    ]


if __name__ == "__main__":
    main()
