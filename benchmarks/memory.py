"""Whether a worker's memory grows: resident memory over 2,000 images of the tiny checkpoint, on the CPU.

One worker process, real Kafka, a directory as the store. During the first 200 images everything that is
set up lazily is set up; from then on memory should stay constant.

    python -m tests.services run --no-registry -- python -m benchmarks.memory
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Literal

from benchmarks.report import Plot, Report, parser, publish
from benchmarks.workers import Workers, fresh_settings, resident_bytes, until
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.engines.tiny.captions import COMBINATIONS, caption

SETTLE = 200


def main() -> None:
    options = parser(__doc__, "few images")
    options.add_argument("--count", type=int, default=2_000, help="images to generate")
    arguments = options.parse_args()
    count, settle = (24, 8) if arguments.quick else (arguments.count, SETTLE)
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(count, folder)
    base = next(size for made, size in samples if made >= settle)
    last, peak = samples[-1][1], max(size for made, size in samples if made >= settle)
    rows = [[made, round(size / 2**20, 1)] for made, size in samples]
    findings = [
        f"Growth after the first {settle} images: {last / base - 1:.2%} at the end, {peak / base - 1:.2%} "
        f"at most."
    ]
    plot = Plot(
        "lines", "images", "resident MiB", {"memory": [(made, size / 2**20) for made, size in samples]}
    )
    publish(Report(("images", "resident MiB"), rows, findings, plot), arguments)


def measure(count: int, folder: str) -> list[tuple[int, int]]:
    """Pictures made so far and the worker's resident bytes, about every 20th of them."""
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
            made = until(
                partial(reached, worker, min(count, made + max(1, count // 20))), "more pictures are made"
            )
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
