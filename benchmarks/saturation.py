"""How busy the device is while there is work, in this project and in the stack it replaces.

The two run one after the other: one worker, a simulated device that takes a fixed time per 1024x1024 image,
images that are as hard to encode as photographs, PNG, stored in MinIO. Broker, store, worker and client
share one machine. All requests are queued before the start.

- *busy*: the device time of all images, divided by the time from the start of the first image to the end of
  the last one. Anything that keeps the device waiting lowers it.
- *images/s*: measured until the last object is stored.

With `--progress`, this project is compared with itself instead: `worker.progress` off, stages and steps take
turns, and the figures are the medians of their rounds.

    python -m tests.services run --no-registry -- python -m benchmarks.saturation
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.report import Plot, Report, parser, publish
from benchmarks.seed_stack import SeedStack
from benchmarks.workers import Workers, answers, fresh_settings, until
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.settings import Settings

SERVICE_MS = (320.0, 850.0)
"""Of an H200 and an L40S for one 1024x1024 picture at 8 steps."""
LEVELS = ("off", "stages", "steps")
"""Of ``worker.progress``."""
ALLOWED = 0.005
"""Share of the device's busy time that progress may cost."""
OURS, THEIRS = "this project", "Redis and RQ, sequential"


@dataclass(frozen=True)
class Run:
    """UNIX times of generations' starts and of objects being there, in no order."""

    started: list[float]
    stored: list[float]

    def busy(self, service_s: float) -> float:
        """The device's share."""
        return len(self.started) * service_s / (max(self.started) + service_s - min(self.started))

    @property
    def images_a_second(self) -> float:
        return len(self.stored) / (max(self.stored) - min(self.started))


def main() -> None:
    options = parser(__doc__, "few and fast images")
    options.add_argument("--pictures", type=int, default=200)
    options.add_argument("--progress", action="store_true", help="compare worker.progress off, stages, steps")
    options.add_argument("--rounds", type=int, default=5, help="of each setting, with --progress")
    arguments = options.parse_args()
    if arguments.progress:
        compare_progress(arguments)
        return
    service, pictures = ((50.0,), 20) if arguments.quick else (SERVICE_MS, arguments.pictures)
    rows: list[tuple[float, str, float, float]] = []
    for milliseconds in service:
        for name, run in ((THEIRS, theirs), (OURS, ours)):
            engine = {"kind": "simulated", "simulated_ms": milliseconds, "simulated_scenery": True}
            with fresh_settings(engine=engine) as settings:
                seen = run(settings, pictures)
            rows.append((milliseconds / 1e3, name, seen.busy(milliseconds / 1e3), seen.images_a_second))
    findings = []
    for service_s in {row[0]: None for row in rows}:
        their, our = (row for row in rows if row[0] == service_s)
        findings.append(
            f"At {service_s:g} s per image the device is busy {our[2]:.1%} of the time, against "
            f"{their[2]:.1%}: {our[3] / their[3]:.2f} times the images per second."
        )
    series = {
        name: [(f"{row[0]:g} s per image", row[2]) for row in rows if row[1] == name]
        for name in (OURS, THEIRS)
    }
    publish(
        Report(
            ("s per image", "stack", "busy", "images/s"),
            rows,
            findings,
            Plot("bars", "", "device busy", series, line=(0.99, "0.99")),
        ),
        arguments,
    )


def compare_progress(arguments: argparse.Namespace) -> None:
    """Report how busy the device is with each setting of ``worker.progress``."""
    quick = arguments.quick
    milliseconds, pictures, rounds = (50.0, 20, 1) if quick else (320.0, arguments.pictures, arguments.rounds)
    engine = {"kind": "simulated", "simulated_ms": milliseconds, "simulated_scenery": True}
    seen: dict[str, list[Run]] = {level: [] for level in LEVELS}
    for number in range(rounds):
        # Each begins a round as often as the others: a machine may become slower.
        for level in (*LEVELS[number % 3 :], *LEVELS[: number % 3]):
            with fresh_settings(engine=engine, worker={"progress": level}) as settings:
                seen[level].append(ours(settings, pictures))
    busy = {level: [run.busy(milliseconds / 1e3) for run in runs] for level, runs in seen.items()}
    rows = [
        (level, median(busy[level]), min(busy[level]), max(busy[level]), median(map(_images_a_second, runs)))
        for level, runs in seen.items()
    ]
    columns = ("worker.progress", "busy", "least", "most", "images/s")
    publish(Report(columns, rows, [cost_of_progress(busy)]), arguments)


def cost_of_progress(busy: Mapping[str, Sequence[float]]) -> str:
    """What progress costs, in a sentence. Pure.

    Args:
        busy: shares of the device's busy time by setting, one for each round.
    """
    off = median(busy["off"])
    costs = {level: 1 - median(busy[level]) / off for level in LEVELS if level != "off"}
    told = " and ".join(f"{cost:.2%} with {level}" for level, cost in costs.items())
    verdict = "within" if max(costs.values()) <= ALLOWED else "MORE THAN"
    return (
        f"Without progress the device is busy {off:.2%} of the time. Lost: {told}, {verdict} {ALLOWED:.1%}."
    )


def _images_a_second(run: Run) -> float:
    return run.images_a_second


def ours(settings: Settings, pictures: int) -> Run:
    with Workers(settings) as workers, answers(settings) as take, PromptClient(settings) as client:
        until(lambda: workers.lines("took over partitions"), "the worker is in the group")
        client.submit_many(PromptRequest(prompt=f"warm {number}") for number in range(4))
        take(4)
        client.submit_many(PromptRequest(prompt=f"picture {number}") for number in range(pictures))
        results = take(pictures)
    started = [result.started_at.timestamp() for result in results if result.started_at is not None]
    return Run(started, [result.completed_at.timestamp() for result in results])


def theirs(settings: Settings, pictures: int) -> Run:
    with SeedStack(settings) as stack:
        names = stack.submit(f"{settings.topics.requests}-{number}" for number in range(pictures))
        # Asking costs the machine something, too: no more often than a client would.
        until(lambda: len(stack.done(names[-1:])) == 1, "the RQ worker has answered", 3_600)
        done = stack.done(names)
    return Run([each.started for each in done], [each.stored for each in done])


if __name__ == "__main__":
    main()
