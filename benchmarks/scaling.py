"""How throughput scales with workers: the time for a backlog, compared with the shortest possible time.

Workers under one supervisor, a simulated device of 0.32 s for each, all requests queued before the start, 16
partitions. *Efficiency* is the shortest possible time (images x service time / workers), divided by the time
from the first start of a generation to the last result's commit. Images are 256x256, so that two cores can
encode and store for eight workers; the product images are 1024x1024 PNG in MinIO.

The last row is a pair of workers of which one is half as fast. A partition belongs to one worker, so each
gets half of the backlog, and the faster one is idle at the end.

    python -m tests.services run --no-registry -- python -m benchmarks.scaling
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.report import Cell, Plot, Report, parser, publish
from benchmarks.workers import Workers, answers, fresh_settings, until
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.settings import Settings

SERVICE_S = 0.32
PARTITIONS = 16
WORKERS = (1, 2, 4, 8)
EACH = 500
PRODUCTS, PRODUCT_WORKERS = 200, 4
PAIR = 600


def main() -> None:
    options = parser(__doc__, "few images, two workers at most")
    options.add_argument("--each", type=int, default=EACH, help="images for each worker")
    arguments = options.parse_args()
    counts = (1, 2) if arguments.quick else WORKERS
    each, products, pair = (4, 4, 6) if arguments.quick else (arguments.each, PRODUCTS, PAIR)

    rows: list[list[Cell]] = []
    points: list[tuple[float | str, float]] = []
    for count in counts:
        took = makespan(each * count, 256, [1.0] * count)
        shortest = each * SERVICE_S
        rows.append([f"{count} workers", each * count, took, shortest, shortest / took])
        points.append((count, shortest / took))
    several = 2 if arguments.quick else PRODUCT_WORKERS
    took = makespan(products, 1024, [1.0] * several)
    shortest = products * SERVICE_S / several
    rows.append([f"{several} workers, product images", products, took, shortest, shortest / took])
    findings = [f"{products} product images of 1024x1024 with {several} workers: {took:.1f} s."]
    took = makespan(pair, 256, [1.0, 2.0])
    shortest = pair * SERVICE_S / 1.5
    rows.append(["a pair, one half as fast", pair, took, shortest, shortest / took])
    columns = ("run", "images", "took, s", "shortest, s", "efficiency")
    plot = Plot("lines", "workers", "efficiency", {"efficiency": points}, line=(0.97, "0.97"))
    publish(Report(columns, rows, findings, plot), arguments)


def makespan(pictures: int, side: int, slowness: Sequence[float]) -> float:
    """Seconds from the first generation's start to the last commit, one worker for each slowness."""
    with ExitStack() as stack:
        settings = stack.enter_context(fresh_settings(PARTITIONS, engine=_engine(side, slowness[0])))
        take = stack.enter_context(answers(settings))
        client = stack.enter_context(PromptClient(settings))
        if len(set(slowness)) == 1:
            devices = ("--devices", f"cpu:{len(slowness)}")
            running = [stack.enter_context(Workers(settings, *devices))]
        else:
            running = [
                stack.enter_context(Workers(_of_a_pair(settings, side, number, factor)))
                for number, factor in enumerate(slowness)
            ]

        def joined() -> bool:
            return sum(len(each.lines("took over partitions")) for each in running) >= len(slowness)

        until(joined, "all workers are in the group")
        # Until each has its share of the partitions, and has its connections open.
        client.submit_many(_request(f"warm {number}", side) for number in range(8 * len(slowness)))
        take(8 * len(slowness))
        client.submit_many(_request(f"picture {number}", side) for number in range(pictures))
        results = take(pictures)
    started = min(result.started_at for result in results if result.started_at is not None)
    return (max(result.completed_at for result in results) - started).total_seconds()


def _engine(side: int, slowness: float) -> Mapping[str, Any]:
    milliseconds = SERVICE_S * 1e3 * slowness * (1024 / side) ** 2
    return {
        "kind": "simulated",
        "simulated_ms": milliseconds,
        "simulated_scenery": True,
        "max_batch": 1,
    }


def _of_a_pair(settings: Settings, side: int, number: int, slowness: float) -> Settings:
    worker = settings.worker.model_copy(update={"slot": f"pair-{number}-{os.getpid()}"})
    engine = settings.engine.model_copy(update=_engine(side, slowness))
    return settings.model_copy(update={"worker": worker, "engine": engine})


def _request(prompt: str, side: int) -> PromptRequest:
    return PromptRequest(prompt=prompt, width=side, height=side)


if __name__ == "__main__":
    main()
