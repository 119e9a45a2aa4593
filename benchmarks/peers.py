"""Requests without work through six systems, end to end: what remains of a system's time is its own.

A client publishes all requests and then reads all results, with one worker process; broker, worker and
client share one machine. *requests/s* is measured from the first publication until the last result is
read: the median of rounds in which the systems take turns. Each system is restarted in each round and is
warm before the clock starts.

- RQ, Celery and Dramatiq: Redis holds the queue and the results. RQ's worker does not fork. Celery uses
  the pool ``solo`` and ``acks_late`` and fetches one at a time. Dramatiq has one thread and fetches 100 at
  a time; with its default of 2 it would be asleep most of the time.
- FastStream (confluent) and Quix Streams: Kafka, 12 partitions, JSON in and out, read with
  ``read_committed``. FastStream acknowledges after its result is published. Quix Streams commits every 5
  s, its default; for exactly once it commits every 0.3 s, because nothing can be read before a commit.
- This project: Avro on the same broker, read with its own client. It does as little work as the others:
  the engine has its 64x64 image ready, and the store keeps objects in memory. The image is still encoded
  and hashed, because no worker runs without that. *With images*: each image is drawn, and stored in a
  directory.

A GPU takes a third of a second or more for the work that takes no time here, so any of these systems keeps
a GPU busy. They differ in what happens to a request whose worker is killed; see the last column.

Where Quix Streams is ahead, it is because it does less. ``benchmarks.path`` shows where this worker's time
goes: a request is checked against a schema and rules, scheduled, and marked in a commit before it starts,
so that a death it causes can be told from others; its result is committed with it. Quix Streams commits as
rarely as configured, some thousand results at a time, and no result is visible before that. Here each
result is published within milliseconds of its image.

    python -m tests.services run --no-registry -- python -m benchmarks.peers
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.peers_kafka import faststream, ours, quix
from benchmarks.peers_redis import Serve, on_celery, on_dramatiq, rq
from benchmarks.report import Plot, Report, parser, publish

WARM = 100
LOST, AGAIN, ONCE = "at most once", "at least once", "exactly once"
OURS = "this project"
ON_KAFKA = ("FastStream", "Quix Streams")
TWICE = "runs again; its result may appear twice"
ONE = "runs again, one result"


@dataclass(frozen=True)
class System:
    """One of the systems.

    Attributes:
        after_death: what becomes of the request that a worker had when it was killed.
    """

    name: str
    guarantee: str
    after_death: str
    start: Callable[[], AbstractContextManager[Serve]]

    def rate(self, requests: int) -> float:
        """Requests a second."""
        with self.start() as serve:
            serve(WARM)
            begun = time.perf_counter()
            serve(requests)
            return requests / (time.perf_counter() - begun)


SYSTEMS = (
    System("RQ", LOST, "fails, minutes later; runs again only if it was enqueued with Retry", rq),
    System(
        "Celery",
        AGAIN,
        "runs again after the visibility timeout, 1 h; so does one that takes longer",
        on_celery,
    ),
    System(
        "Dramatiq",
        AGAIN,
        "runs again, 1 min or more after its worker's last heartbeat: one command in 1,000 checks",
        on_dramatiq,
    ),
    System("FastStream", AGAIN, TWICE, faststream),
    System(
        "Quix Streams",
        AGAIN,
        "runs again with all since the last commit; results twice",
        partial(quix, "at-least-once"),
    ),
    System(
        "Quix Streams",
        ONCE,
        "runs again, one result; readers wait for the dead worker's transaction, about 1 min",
        partial(quix, "exactly-once"),
    ),
    System(f"{OURS}, with images", AGAIN, TWICE, partial(ours, "at_least_once", pictures=True)),
    System(f"{OURS}, with images", ONCE, ONE, partial(ours, "exactly_once", pictures=True)),
    System(OURS, AGAIN, TWICE, partial(ours, "at_least_once")),
    System(OURS, ONCE, ONE, partial(ours, "exactly_once")),
)


def main() -> None:
    options = parser(__doc__, "few requests, one round")
    options.add_argument("--requests", type=int, default=5_000)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    requests, rounds = (200, 1) if arguments.quick else (arguments.requests, arguments.rounds)
    rates: dict[System, list[float]] = {system: [] for system in SYSTEMS}
    for _ in range(rounds):
        for system, seen in rates.items():
            seen.append(system.rate(requests))
    median = {system: statistics.median(seen) for system, seen in rates.items()}
    *peers, _, _, again, once = SYSTEMS

    def times(mine: System, others: Sequence[System]) -> str:
        said = [
            f"{median[mine] / median[other]:.2g} times {other.name} ({other.guarantee})" for other in others
        ]
        return f"{median[mine]:,.0f} requests per second, {mine.guarantee}, is {', '.join(said)}."

    series = {
        guarantee: [(system.name, median[system]) for system in SYSTEMS if system.guarantee == guarantee]
        for guarantee in (LOST, AGAIN, ONCE)
    }
    publish(
        Report(
            (
                "system",
                "guarantee",
                "requests/s",
                "slowest",
                "fastest",
                "a request whose worker is killed",
            ),
            [
                (system.name, system.guarantee, median[system], min(seen), max(seen), system.after_death)
                for system, seen in rates.items()
            ],
            [times(once, peers), times(again, [peer for peer in peers if peer.name in ON_KAFKA])],
            Plot("bars", "", "requests/s", series, log="y"),
            {"requests": requests, "rounds": rounds, "quixstreams": _quix_version()},
        ),
        arguments,
    )


def _quix_version() -> str:
    found = re.search(r"^quixstreams==(\S+)", Path(__file__).with_name("quix.lock").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


if __name__ == "__main__":
    main()
