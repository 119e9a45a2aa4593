"""How soon a killed worker is back, and what its death costs the other one.

Two workers under one supervisor, simulated engine, real Kafka, a folder as the store. Again and again
one of them is killed with -9 in the middle of its work.

- *back*: seconds from the kill to the first picture of the process that replaces it.
- *others' share*: pictures a second of the other worker from the kill until then, against the time before.

    python -m tests.services run --no-registry -- python -m benchmarks.recovery
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks.workers import Workers, fresh_settings, until
from zimage_stream import PromptClient, PromptRequest

PICTURE_MS = 50.0
BEFORE_S = 8.0
"""Undisturbed work before each kill; the other's rate is measured in its second half."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.kills, folder)
    print(f"{'kill':>4}{'back, s':>10}{'others share':>15}")
    for number, (back, share) in enumerate(rows, 1):
        print(f"{number:>4}{back:>10.1f}{share:>15.2f}")
    backs, shares = zip(*rows, strict=True)
    print(f"back: median {median(backs):.1f} s, most {max(backs):.1f} s")
    print(f"others' share: median {median(shares):.2f}, least {min(shares):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"back_s": backs, "share": shares}, indent=2) + "\n")


def measure(kills: int, folder: str) -> list[tuple[float, float]]:
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
        enough = int((kills + 1) * (BEFORE_S + 20) * 2 * 1e3 / PICTURE_MS)
        client.submit_many(
            PromptRequest(prompt=f"picture {number}", width=256, height=256) for number in range(enough)
        )
        for number in range(kills):
            time.sleep(BEFORE_S)
            rows.append(kill(workers, sorted(workers.processes())[number % 2]))
    return rows


def kill(workers: Workers, slot: str) -> tuple[float, float]:
    """Kill the worker in this slot, and wait until it makes pictures again."""
    killed = time.time()
    os.kill(workers.processes()[slot], signal.SIGKILL)

    def back() -> float:
        return next((at for at in times(workers, slot) if at > killed + 0.5), 0.0)

    at = until(back, f"{slot} makes pictures again")
    (other,) = workers.processes().keys() - {slot}
    done = times(workers, other)
    before = sum(killed - BEFORE_S / 2 <= each < killed for each in done) / (BEFORE_S / 2)
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
