"""What the worker's own pipeline costs: an engine and a store that take no time, and the time of each stage.

One worker, thousands of 64x64 requests queued before it starts. The engine has its image ready, and the store
keeps objects in memory. Everything in between runs as usual, including encoding. The stages are the worker's
own metrics. *Of the time* is a stage's share of its thread, or of all threads of its pool; a value near 1 is
the bottleneck. *Processor* is the worker process's time, including librdkafka.

    python -m tests.services run --no-registry -- python -m benchmarks.path
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.overhead import processor_seconds
from benchmarks.report import Cell, Report, parser, publish
from benchmarks.workers import NULL_WORKER, Guarantee, Workers, answers, fresh_settings, until
from zimage_stream import PromptClient, PromptRequest

STAGES = (
    ("decode and check", "zimage_decode_seconds", "Kafka"),
    ("commit of marks", "zimage_mark_seconds", "Kafka"),
    ("publication", "zimage_transaction_seconds", "Kafka"),
    ("look up", "zimage_look_up_seconds", "upload"),
    ("generate", "zimage_generate_seconds", "engine"),
    ("encode", "zimage_encode_seconds", "encode"),
    ("upload", "zimage_upload_seconds", "upload"),
)
THREADS = {"Kafka": 1, "engine": 1, "encode": 2, "upload": 4}
"""By the default settings."""


def main() -> None:
    options = parser(__doc__, "few requests")
    options.add_argument("--requests", type=int, default=10_000)
    arguments = options.parse_args()
    requests = 300 if arguments.quick else arguments.requests
    rows: list[list[Cell]] = []
    findings = []
    guarantees: tuple[Guarantee, ...] = ("exactly_once", "at_least_once")
    for guarantee in guarantees:
        found, took, processor, count = serve(guarantee, requests)
        for stage, name, thread in STAGES:
            calls, seconds = found[f"{name}_count"], found[f"{name}_sum"]
            share = seconds / took / THREADS[thread]
            rows.append([guarantee, stage, thread, calls / count, 1e3 * seconds / max(1, calls), share])
        findings.append(
            f"{guarantee}: {count / took:.0f} requests per second; {1e3 * processor / count:.2f} ms of "
            f"processor time each."
        )
    columns = ("guarantee", "stage", "thread", "calls per request", "ms per call", "of the time")
    publish(Report(columns, rows, findings), arguments)


def serve(guarantee: Guarantee, requests: int) -> tuple[Mapping[str, float], float, float, int]:
    """What the metrics grew by, seconds, processor seconds and requests, without the first fifth."""
    with (
        fresh_settings(worker={"guarantee": guarantee}) as settings,
        PromptClient(settings) as client,
        answers(settings) as take,
    ):
        client.submit_many(
            PromptRequest(prompt=f"picture {number}", tenant=f"tenant-{number % 10}", width=64, height=64)
            for number in range(requests)
        )
        with Workers(settings, program=NULL_WORKER) as worker:
            port = until(lambda: re.findall(r"metrics on port (\d+)", worker.words()), "its port is known")[0]
            take(requests // 5)
            before, began, used = scrape(port), time.monotonic(), processor_seconds(worker.pid)
            take(requests - requests // 5)
            took, processor = time.monotonic() - began, processor_seconds(worker.pid) - used
            after = scrape(port)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    return grown, took, processor, requests - requests // 5


def scrape(port: str) -> dict[str, float]:
    """The worker's metrics that have no labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


if __name__ == "__main__":
    main()
