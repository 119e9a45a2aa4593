"""Whether a worker grows: its resident memory over 2,000 pictures of the tiny checkpoint, on the CPU.

One worker process, real Kafka, a folder as the store. The first 200 pictures set up what is set up
lazily; from then on memory should stay where it is.

    python -m tests.services run --no-registry -- python -m benchmarks.memory
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.workers import Workers, fresh_settings, resident_bytes, until
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.engines.tiny.captions import COMBINATIONS, caption

SETTLE = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2_000, help="pictures to make")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(arguments.count, folder)
    base = next(size for made, size in samples if made >= SETTLE)
    last, peak = samples[-1][1], max(size for made, size in samples if made >= SETTLE)
    print(f"{'pictures':>10}{'resident MiB':>15}")
    for made, size in samples:
        print(f"{made:>10}{size / 2**20:>15.1f}")
    print(f"growth after the first {SETTLE}: {last / base - 1:.2%} at the end, {peak / base - 1:.2%} at most")
    if arguments.json:
        arguments.json.write_text(json.dumps({"samples": samples}, indent=2) + "\n")


def measure(count: int, folder: str) -> list[tuple[int, int]]:
    """Pictures made so far and the worker's resident bytes, about every 100 pictures."""
    engine = {"kind": "zimage", "model": "tiny", "device": "cpu"}
    store = {"kind": "directory", "path": folder}
    samples = []
    with (
        fresh_settings(engine=engine, store=store) as settings,
        Workers(settings, "--no-supervise") as worker,
        PromptClient(settings) as client,
    ):
        worker.wait_for("took over partitions", 1)
        client.submit_many(map(request, range(count)))
        made = 0
        while made < count:
            made = until(partial(reached, worker, made + min(100, count - made)), "more pictures are made")
            samples.append((made, resident_bytes(worker.pid)))
    return samples


def request(number: int) -> PromptRequest:
    """Captions of every kind and both languages, in turn."""
    language: Literal["en", "zh"] = "en" if number % 2 else "zh"
    prompt = caption(*COMBINATIONS[number % len(COMBINATIONS)], language, number)
    return PromptRequest(prompt=prompt, width=64, height=64)


def reached(worker: Workers, goal: int) -> int:
    """How many pictures are made, once that is as many as the goal; 0 before."""
    made = worker.words().count('"message": "succeeded"')
    return made if made >= goal else 0


if __name__ == "__main__":
    main()
