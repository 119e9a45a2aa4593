"""The size that a record counts for in the window matches the memory it takes."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace

import pytest

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.window.jobs import Job
from zimage_stream.events.headers import Header


def _made(value: int, headers: int, name: int, each: int) -> Job:
    """A job with a value of this many bytes and this many headers."""
    own: tuple[Header, ...] = tuple((f"{number:0{name}}", bytes(each)) for number in range(headers))
    one = job(prompt="p" * 200)
    one.record = replace(one.record, value=bytes(value), key=bytes(36), headers=own)
    return one


@pytest.mark.parametrize(
    ("value", "headers", "name", "each"),
    [(400, 0, 0, 0), (400, 6, 12, 40), (400, 1, 10, 600_000), (400, 1_000, 8, 1), (1 << 20, 0, 0, 0)],
)
def test_a_jobs_size_is_at_least_what_it_holds_and_not_much_more(
    value: int, headers: int, name: int, each: int
) -> None:
    count = 20
    _made(value, headers, name, each)  # objects created once for all jobs must not count
    gc.collect()
    tracemalloc.start()
    try:
        kept = [_made(value, headers, name, each) for _ in range(count)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = sum(one.size for one in kept)
    assert held <= counted * 1.05
    # An empty record also counts for the entries that the scheduler and the ledger keep for it.
    assert counted <= held * 1.1 + count * 2_048
