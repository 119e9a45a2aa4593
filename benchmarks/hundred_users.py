"""A hundred users: how many images they get and how long each of them waits, here and with Redis and RQ.

The stacks run one after the other. Each worker has a simulated device that takes a fixed time per 1024x1024
image (0.32 s). Images are as hard to encode as photographs, PNG, stored in MinIO. Broker, store, workers and
users share one machine, so with several workers its cores may become the bottleneck; the table shows whether
they do.

- *closed loop*, "100 users": each user requests the next image as soon as the last one can be read. Results
  before everybody has been answered once are warm-up. The run lasts ``--minutes`` (1) in total, and continues
  for at least as long after the warm-up as the warm-up took, which is one round of all users.
- *open loop*, "30 %" to "110 %": users arrive at random (a Poisson process with a fixed seed, the same for
  both stacks), at that share of what the devices can do, for ``--seconds`` per share (20) and until everybody
  has been answered. It runs with one worker; ``--open`` sets other numbers.

Times are in seconds, from the moment a request was due to the moment its image can be read. In the open loop
a request is due at its place in the schedule, however late the program sent it; in the closed loop it is due
when its user's last image could be read. Percentiles are nearest ranks: of 50 requests the p99 is the
slowest. The default takes about 12 minutes; ``--seconds 120`` tells more about the slowest requests.

    python -m tests.services run --no-registry -- python -m benchmarks.hundred_users
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from statistics import mean
from typing import Protocol

from benchmarks.report import Cell, Plot, Report, parser, publish
from benchmarks.saturation import OURS, THEIRS
from benchmarks.seed_stack import Done, SeedStack
from benchmarks.workers import Workers, fresh_settings, percentile, until
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.kafka.reader import ResultReader
from zimage_stream.settings import Settings

LOADS = (0.3, 0.5, 0.7, 0.9, 1.1)
CLAIM = (100, 1.2, 1.82)
"""What such stacks are said to do: users, images a second, seconds for each."""
POLL_S = 0.02
"""How often an RQ user's program asks; there is nothing that would tell it."""
SILENCE_S = 120.0

Arrival = tuple[float, str]
"""When, in seconds from the start, and which user."""


@dataclass(frozen=True)
class Answer:
    """A request that has ended, and the UNIX time at which its picture could be read."""

    name: str
    stored: float
    succeeded: bool


class Stack(Protocol):
    """What a user can do."""

    def send(self, user: str) -> str:
        """Ask for a picture; returns the request's name."""

    def take(self, timeout_s: float) -> Sequence[Answer]:
        """What has ended since the last call; waits for it for so long at most."""


@dataclass(frozen=True)
class Point:
    """One line of the table.

    Attributes:
        load: share of what the devices can do; ``None``: the closed loop.
        waits: seconds, of each request that succeeded.
        seconds: in which these requests were served.
    """

    stack: str
    workers: int
    load: float | None
    waits: Sequence[float]
    errors: int
    seconds: float

    def __post_init__(self) -> None:
        if not self.waits:
            raise SystemExit(f"{self.stack}: of {self.errors} pictures none was made")

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.waits) / self.seconds


def main() -> None:
    options = parser(__doc__, "5 users, a device of 50 ms, one worker, two loads, a second of each")
    options.add_argument("--users", type=int, default=100)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 3, 4], help="one run with each")
    options.add_argument("--open", type=int, nargs="*", default=[1], help="those with the open loop, too")
    options.add_argument("--service", type=float, default=0.32, help="seconds a picture")
    options.add_argument("--minutes", type=float, default=1.0, help="of the closed loop")
    options.add_argument("--seconds", type=float, default=20.0, help="of the open loop at each load")
    arguments = options.parse_args()
    loads: Sequence[float] = LOADS
    if arguments.quick:
        arguments.users, arguments.workers, arguments.service = 5, [1], 0.05
        arguments.minutes, arguments.seconds, loads = 0.02, 1.0, (0.7, 1.1)
    engine = {"kind": "simulated", "simulated_ms": arguments.service * 1e3, "simulated_scenery": True}
    users = [f"user-{number:02}" for number in range(arguments.users)]
    points: list[Point] = []
    for workers in arguments.workers:
        for name, start in ((OURS, ours), (THEIRS, theirs)):
            with fresh_settings(engine=engine) as settings, start(settings, workers) as stack:
                open_loop(stack, [(0.0, "warm-up")] * 4 * workers, 0.0)
                for load in loads if workers in arguments.open else ():
                    rate = load * workers / arguments.service
                    arrivals = schedule(rate, arguments.seconds, users, f"{workers} at {load}")
                    opened = open_loop(stack, arrivals, arguments.seconds)
                    points.append(Point(name, workers, load, *opened))
                # Last, because its end leaves requests in the queue.
                closed = closed_loop(stack, users, arguments.minutes * 60)
                points.append(Point(name, workers, None, *closed))
    publish(
        Report(
            ("stack", "workers", "load", "requests", "images/s", "mean", "p50", "p95", "p99", "errors"),
            [row(point, len(users)) for point in points],
            findings(points, len(users), arguments.service),
            plot(points, arguments.workers[0]),
            {"service_s": arguments.service, "minutes": arguments.minutes, "seconds": arguments.seconds},
        ),
        arguments,
    )


def schedule(rate: float, seconds: float, users: Sequence[str], seed: str) -> list[Arrival]:
    """Arrivals of a Poisson process, earliest first, each with a user at random. Pure."""
    random = Random(seed)
    # Given how many come, their times are independent and uniform. The number is its mean, because in so
    # short a time chance alone would move the load by more than lies between two lines of the table.
    times = sorted(random.uniform(0, seconds) for _ in range(round(rate * seconds)))
    return [(at, random.choice(users)) for at in times]


def open_loop(stack: Stack, arrivals: Sequence[Arrival], seconds: float) -> tuple[list[float], int, float]:
    """Send on schedule, until that is over and all is answered: waits, number of errors, and seconds."""
    began, coming = time.time(), deque(arrivals)
    waiting: dict[str, float] = {}
    waits: list[float] = []
    end, heard = began + seconds, began
    while coming or waiting:
        while coming and began + coming[0][0] <= time.time():
            at, user = coming.popleft()
            waiting[stack.send(user)] = began + at
        pause = began + coming[0][0] - time.time() if coming else 1.0
        for answer in stack.take(min(max(pause, 0.0), 1.0)):
            meant = waiting.pop(answer.name)
            if answer.succeeded:
                waits.append(answer.stored - meant)
            end, heard = max(end, answer.stored), time.time()
        if not waiting:
            heard = time.time()
        _give_up_after(heard)
    return waits, len(arrivals) - len(waits), end - began


def closed_loop(stack: Stack, users: Sequence[str], seconds: float) -> tuple[list[float], int, float]:
    """As the module says, for at least so many seconds: waits, errors and seconds after the warm-up."""
    began = heard = time.time()
    waiting = {stack.send(user): (user, began) for user in users}
    new = set(users)
    warm: float | None = None
    seen: list[tuple[Answer, float]] = []
    while warm is None or time.time() < max(began + seconds, warm + (warm - began)):
        for answer in stack.take(0.2):
            user, since = waiting.pop(answer.name)
            waiting[stack.send(user)] = (user, answer.stored)
            heard = time.time()
            if warm is not None:
                seen.append((answer, answer.stored - since))
            new.discard(user)
            if warm is None and not new:
                warm = answer.stored
        _give_up_after(heard)
    waits = [wait for answer, wait in seen if answer.succeeded]
    # From one answer to another: the time before the first of them belongs to the warm-up.
    return waits, len(seen) - len(waits), max(answer.stored for answer, _ in seen) - warm


def _give_up_after(heard: float) -> None:
    if time.time() - heard > SILENCE_S:
        raise SystemExit(f"there are requests without an answer, and silence for {SILENCE_S:g} s")


class OurStack:
    """This project, through its client."""

    def __init__(self, client: PromptClient, reader: ResultReader) -> None:
        self._client = client
        self._reader = reader

    def send(self, user: str) -> str:
        request = PromptRequest(prompt=f"a picture for {user}", tenant=user)
        self._client.submit_nowait(request)
        return request.request_id

    def take(self, timeout_s: float) -> Sequence[Answer]:
        result = self._reader.poll(timeout_s)
        if result is None:
            return ()
        return (Answer(result.request_id, result.completed_at.timestamp(), result.succeeded),)


class TheirStack:
    """Redis and RQ, asked in bulk by one program for all users."""

    def __init__(self, stack: SeedStack) -> None:
        self._stack = stack
        self._waiting: set[str] = set()

    def send(self, user: str) -> str:
        (name,) = self._stack.submit([f"{user}-{uuid.uuid4().hex}"])
        self._waiting.add(name)
        return name

    def take(self, timeout_s: float) -> Sequence[Answer]:
        time.sleep(min(timeout_s, POLL_S))
        succeeded, failed = (names & self._waiting for names in self._stack.ended())
        self._waiting -= succeeded | failed
        done: Sequence[Done] = self._stack.done([*succeeded]) if succeeded else ()
        return [
            *(Answer(each.name, each.stored, True) for each in done),
            *(Answer(name, time.time(), False) for name in failed),
        ]


@contextmanager
def ours(settings: Settings, workers: int) -> Iterator[Stack]:
    """With so many workers, each of which has partitions."""
    with (
        Workers(settings, "--devices", f"cpu:{workers}") as running,
        PromptClient(settings) as client,
        client.open_reader() as reader,
    ):

        def all_there() -> bool:
            return len({line["slot"] for line in running.lines("took over partitions")}) == workers

        until(all_there, "every worker has partitions")
        yield OurStack(client, reader)


@contextmanager
def theirs(settings: Settings, workers: int) -> Iterator[Stack]:
    """With so many workers."""
    with SeedStack(settings, workers) as stack:
        yield TheirStack(stack)


def row(point: Point, users: int) -> Sequence[Cell]:
    """A line of the table."""
    waits = point.waits
    shares = (percentile(waits, share) for share in (0.5, 0.95, 0.99))
    load = f"{users} users" if point.load is None else percent(point.load)
    count = len(waits) + point.errors
    return (point.stack, point.workers, load, count, point.rate, mean(waits), *shares, point.errors)


def percent(share: float) -> str:
    """In words. Pure."""
    return f"{share * 100:.0f} %"


def users_by_littles_law(rate: float, seconds: float) -> float:
    """Users in a closed loop without time to think: requests a second times seconds of each. Pure."""
    return rate * seconds


def findings(points: Sequence[Point], users: int, service_s: float) -> list[str]:
    """Sentences about the first number of workers."""
    workers = points[0].workers
    ones = [point for point in points if point.workers == workers]
    closed = {point.stack: point for point in ones if point.load is None}
    p95 = {(each.stack, each.load): percentile(each.waits, 0.95) for each in ones}
    loads = list(dict.fromkeys(each.load for each in ones if each.load is not None))
    possible = workers / service_s
    said = [
        f"{users} users with {workers} worker{'s' * (workers > 1)} get {closed[OURS].rate:.2f} images/s from "
        f"{OURS}, {closed[THEIRS].rate:.2f} from {THEIRS}; the device can do {possible:.2f}."
    ]
    said += [
        f"At {percent(load)} of what the device can do, the p95 is {p95[OURS, load]:.2f} s, against "
        f"{p95[THEIRS, load]:.2f} s."
        for load in loads
        if load in (0.7, 0.9)
    ]
    for name, point in closed.items():
        growing = [percent(load) for load in loads if load * possible > point.rate]
        if growing:
            said.append(
                f"At {', '.join(growing)} more requests arrive than the {point.rate:.2f} images/s of {name}: "
                "the queue grows without bound, and the latency only reflects how long the run was."
            )
    checks = ", ".join(
        f"{each.rate:.2f} x {mean(each.waits):.2f} = {users_by_littles_law(each.rate, mean(each.waits)):.1f} "
        f"({name})"
        for name, each in closed.items()
    )
    many, rate, seconds = CLAIM
    return [
        *said,
        f'The usual claim for such stacks, "{many} users, {rate} images/s, {seconds} s", contradicts '
        "Little's law: if users ask again at once, their number equals throughput times latency, so "
        f"{rate} images/s means {many / rate:.0f} s for each of {many} users, and {seconds} s would need "
        f"{many / seconds:.0f} images/s. Measured here with {users} users, the product is {checks}.",
    ]


def plot(points: Sequence[Point], workers: int) -> Plot | None:
    """The open loop's p95 over load."""
    series = {
        name: [
            (round(point.load * 100), percentile(point.waits, 0.95))
            for point in points
            if point.stack == name and point.workers == workers and point.load is not None
        ]
        for name in (OURS, THEIRS)
    }
    if not all(series.values()):
        return None
    return Plot("lines", "load, % of what the device can do", "p95, s", series, log="y")


if __name__ == "__main__":
    main()
