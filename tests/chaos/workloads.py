"""The requests that are sent while the faults happen."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from tests.chaos.stage import SUCCEEDED, Stage
from zimage_stream import PromptRequest

RATE = 30.0
"""Requests per second."""

Workload = Callable[[Stage, random.Random], None]


def image_request(prompt: str = "a heron", **fields: object) -> PromptRequest:
    """A request that takes a simulated engine 20 ms, where its reference takes 320 ms."""
    return PromptRequest(**{"prompt": prompt, "width": 256, "height": 256} | fields)  # type: ignore[arg-type]


def steady(stage: Stage, rng: random.Random) -> None:
    """One request after another, at an even rate; every tenth is invalid."""
    for number in paced(stage):
        if number % 10 == 9:
            stage.send(image_request(f"heron {number}", steps=0), ("FAILED/INVALID_REQUEST",))
        else:
            stage.send(image_request(f"heron {number}", attributes={"n": str(number)}))


def burst(stage: Stage, rng: random.Random) -> None:
    """Seven seconds' worth of work at once, repeatedly."""
    for number in paced(stage):
        if number % 210 == 0:
            for each in range(210):
                stage.send(image_request(f"heron {number + each}"))


def tenants(stage: Stage, rng: random.Random) -> None:
    """Many tenants with sizes of their own; a few of them send most requests."""
    for number in paced(stage):
        rank = min(49, int(rng.paretovariate(0.8)))
        side = 64 * (1 + rank % 5)
        tenant = f"tenant-{rank}"
        stage.send(image_request(f"heron {number}", tenant=tenant, width=side, priority=rng.randint(-3, 3)))


def duplicates(stage: Stage, rng: random.Random) -> None:
    """Every third request is sent again, and every ninth with other parameters under the same id."""
    for number in paced(stage):
        one = image_request(f"heron {number}", request_id=f"r-{number}", seed=1)
        other = image_request("something else", request_id=f"r-{number}", seed=2)
        conflicts = (*SUCCEEDED, "FAILED/ID_CONFLICT")
        stage.send(one, conflicts if number % 9 == 0 else SUCCEEDED)
        if number % 3 == 0:
            stage.send(one, conflicts if number % 9 == 0 else SUCCEEDED)
        if number % 9 == 0:
            stage.send(other, conflicts)


def paced(stage: Stage) -> Iterator[int]:
    """Yield numbers at an even rate for as long as the scenario runs; faster after a pause of the machine."""
    begin = time.monotonic()
    number = 0
    while stage.playing.is_set():
        time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        yield number
        number += 1


WORKLOADS: dict[str, Workload] = {
    "steady": steady,
    "burst": burst,
    "tenants": tenants,
    "duplicates": duplicates,
}
