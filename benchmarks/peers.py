"""Null work through six systems, end to end: what is left of a system's time when the work takes none.

A client publishes all requests and then reads all results; one worker process; broker, worker and client on
one machine. *requests/s* is from the first publication until the last result is read: the median of
rounds in which the systems take turns. Each starts anew in each round and is warm before the clock runs.

- RQ, Celery and Dramatiq: Redis has the queue and the results. RQ's worker does not fork, Celery's has the
  pool ``solo`` and ``acks_late`` and fetches one at a time, Dramatiq's has one thread and fetches 100 at a
  time: with its default, 2, it would be asleep most of the time.
- FastStream (confluent) and Quix Streams: Kafka, 12 partitions, JSON in and out, read with
  ``read_committed``. FastStream acknowledges after its result is published. Quix Streams commits every 5 s,
  its default; where it is exactly once it commits every 0.3 s, since nothing can be read before.
- This project: Avro on the same broker, read with its own client. Its work is as null as the others': the
  engine has its picture of 64x64 already, and the store keeps it in memory; it is encoded and hashed all the
  same, since there is no worker that does without. *With pictures*: each is drawn, and stored in a directory.

A GPU takes a third of a second or more for what takes none here, so any of them keeps one busy in this
respect. What differs is what becomes of a request whose worker is killed, as the last column says.

Where Quix Streams is ahead, it is by what it leaves out. ``benchmarks.path`` shows where this worker's time
goes: a request is checked against a schema and rules, scheduled, marked in a commit before it starts, so that
its death can be told from others', and its result is committed with it. Quix Streams commits as rarely as it
is told to, some thousand results at a time, and nobody sees a result before; here each is out within
milliseconds of its picture.

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
TWICE = "run again; its result may be there twice"
ONE = "run again, one result"


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
    System("RQ", LOST, "failed, minutes later; run again only if it was enqueued with Retry", rq),
    System(
        "Celery", AGAIN, "run again after the visibility timeout, 1 h; so is one that takes longer", on_celery
    ),
    System(
        "Dramatiq",
        AGAIN,
        "run again, 1 min after its worker's last sign or later: one command in 1,000 looks",
        on_dramatiq,
    ),
    System("FastStream", AGAIN, TWICE, faststream),
    System(
        "Quix Streams",
        AGAIN,
        "run again with all since the last commit; results twice",
        partial(quix, "at-least-once"),
    ),
    System(
        "Quix Streams",
        ONCE,
        "run again, one result; readers wait for the dead one's transaction, about 1 min",
        partial(quix, "exactly-once"),
    ),
    System(f"{OURS}, with pictures", AGAIN, TWICE, partial(ours, "at_least_once", pictures=True)),
    System(f"{OURS}, with pictures", ONCE, ONE, partial(ours, "exactly_once", pictures=True)),
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
        return f"{median[mine]:,.0f} requests a second, {mine.guarantee}, is {', '.join(said)}."

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
                "a request whose worker is killed is",
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
