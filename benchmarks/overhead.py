"""Where the time goes that is not generation: one request at a time, stage by stage.

One worker with a simulated device, exactly_once, real Kafka and MinIO, the client on the same machine.
Each request is sent after the result of the previous one has been read, so nothing waits for anything
else. The stages are the worker's own OpenTelemetry spans, received here over OTLP. All times come from one
clock, so they add up to the whole; time between two spans is counted as *hand-over*.

- *overhead*: from the call that submits to the result in the reader's hands, minus the generation.
- *idle*: the processor time that the same worker uses while there is nothing to do.

With `--progress`, this project is compared with itself instead: a worker with `worker.progress=off` and one
with `steps` take turns.

    python -m tests.services run --no-registry -- python -m benchmarks.overhead
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from benchmarks.report import Cell, Report, parser, publish
from benchmarks.workers import Workers, fresh_settings, percentile, until
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.kafka.reader import ResultReader
from zimage_stream.settings import Settings

SERVICE_S = 0.1
WARM_UP = 100
SIDES = (1024, 64)
IDLE_S = 20.0
WORKER_STAGES = ("decode", "mark", "look up", "wait", "generate", "encode", "upload", "publish")
LEVELS = ("off", "steps")
"""Of ``worker.progress``."""
STAGES = ("produce", "fetch", *(stage for stage in WORKER_STAGES if stage != "wait"), "read", "hand-over")

Spans = dict[str, tuple[float, float]]
"""When each stage began and ended, in UNIX time."""


def main() -> None:
    options = parser(__doc__, "few requests")
    options.add_argument("--requests", type=int, default=200, help="of each size")
    options.add_argument("--progress", action="store_true", help="compare worker.progress off and steps")
    arguments = options.parse_args()
    if arguments.progress:
        compare_progress(arguments)
        return
    count, warm_up, idle_s = (5, 5, 1.0) if arguments.quick else (arguments.requests, WARM_UP, IDLE_S)
    rows: list[list[Cell]] = []
    findings = []
    for side in SIDES:
        with collector() as (endpoint, traces):
            engine = {
                "kind": "simulated",
                "simulated_ms": SERVICE_S * 1e3 * (1024 / side) ** 2,
                "simulated_scenery": True,
                "max_batch": 1,
            }
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
            # Spans leave often, so that none waits for the end.
            os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "500"
            with fresh_settings(engine=engine, telemetry={"port": 0, "traces": True}) as settings:
                seen, idle = one_by_one(settings, side, count, warm_up, idle_s, traces)
        overhead = [1e3 * (whole["whole"] - whole["generate"]) for whole in seen]
        for stage in STAGES:
            times = [1e3 * each[stage] for each in seen]
            rows.append([f"{side}x{side}", stage, median(times), percentile(times, 0.99)])
        rows.append([f"{side}x{side}", "whole", *_two([1e3 * each["whole"] for each in seen])])
        rows.append([f"{side}x{side}", "overhead", *_two(overhead)])
        sums = sum(median(each[stage] for each in seen) for stage in STAGES)
        whole = median(each["whole"] for each in seen)
        findings.append(
            f"{side}x{side}: {median(overhead):.1f} ms (median) and {percentile(overhead, 0.99):.1f} ms "
            f"(99 %) on top of the generation; the stages' medians add up to {sums / whole:.1%} of the "
            f"whole. Idle, the worker uses {idle:.2%} of a core."
        )
    publish(Report(("image", "stage", "median, ms", "p99, ms"), rows, findings), arguments)


def compare_progress(arguments: argparse.Namespace) -> None:
    """Report what progress adds to the time of one request."""
    count, warm_up = (5, 5) if arguments.quick else (arguments.requests, WARM_UP)
    rows: list[list[Cell]] = []
    findings = []
    for side in SIDES:
        engine = {"kind": "simulated", "simulated_ms": SERVICE_S * 1e3 * (1024 / side) ** 2, "max_batch": 1}
        with ExitStack() as stack:
            asking = {}
            for level in LEVELS:
                settings = stack.enter_context(fresh_settings(engine=engine, worker={"progress": level}))
                workers = stack.enter_context(Workers(settings))
                client = stack.enter_context(PromptClient(settings))
                asking[level] = client, stack.enter_context(client.open_reader())
                until(lambda workers=workers: workers.lines("took over partitions"), "it is in the group")  # type: ignore[misc]
            seen: dict[str, list[float]] = {level: [] for level in LEVELS}
            for number in range(warm_up + count):
                for level in LEVELS if number % 2 else LEVELS[::-1]:
                    request = PromptRequest(prompt=f"picture {number}", width=side, height=side)
                    sent, _, read = round_trip(*asking[level], request)
                    seen[level].append(1e3 * (read - sent - SERVICE_S))
        off, steps = (times[warm_up:] for times in seen.values())
        rows += [[f"{side}x{side}", level, *_two(seen[level][warm_up:])] for level in LEVELS]
        added = median(with_it - without for with_it, without in zip(steps, off, strict=True))
        findings.append(
            f"{side}x{side}: with steps the median is {median(steps) - median(off):+.2f} ms; of pairs, the "
            f"median difference is {added:+.2f} ms."
        )
    columns = ("image", "worker.progress", "median, ms", "p99, ms")
    publish(Report(columns, rows, findings), arguments)


def round_trip(
    client: PromptClient, reader: ResultReader, request: PromptRequest
) -> tuple[float, float, float]:
    """When a request is sent, accepted, and its result read, in UNIX time."""
    sent = time.time()
    client.submit(request)
    accepted = time.time()
    while (result := reader.poll(1.0)) is None or result.request_id != request.request_id:
        pass
    return sent, accepted, time.time()


def one_by_one(
    settings: Settings, side: int, count: int, warm_up: int, idle_s: float, traces: dict[str, Spans]
) -> tuple[list[dict[str, float]], float]:
    """Seconds of each stage, request by request; and the share of a core that idling takes."""
    clocks: dict[str, tuple[float, float, float]] = {}
    with (
        Workers(settings) as workers,
        PromptClient(settings) as client,
        client.open_reader() as reader,
    ):
        until(lambda: workers.lines("took over partitions"), "the worker is in the group")
        for number in range(warm_up + count):
            request = PromptRequest(prompt=f"picture {number}", width=side, height=side)
            clocks[request.request_id] = round_trip(client, reader, request)
        wanted = list(clocks)[warm_up:]
        until(lambda: all(name in traces for name in wanted), "the spans are here")
        (pid,) = workers.processes().values()
        before = processor_seconds(pid)
        time.sleep(idle_s)
        idle = (processor_seconds(pid) - before) / idle_s
    return [stages_of(traces[name], *clocks[name]) for name in wanted], idle


def stages_of(spans: Spans, sent: float, accepted: float, read: float) -> dict[str, float]:
    """Seconds of each stage of one request. Pure; the worker may have a record before its sender knows."""
    fetched = spans["decode"][0]
    out = {stage: spans[stage][1] - spans[stage][0] for stage in WORKER_STAGES if stage != "wait"}
    # Asked beside the commit of the marks: what it takes longer.
    out["look up"] = max(0.0, spans["look up"][1] - max(spans["look up"][0], spans["mark"][1]))
    out["produce"] = min(accepted, fetched) - sent
    out["fetch"] = max(0.0, fetched - accepted)
    out["read"] = read - spans["publish"][1]
    out["whole"] = read - sent
    out["hand-over"] = out["whole"] - sum(out[stage] for stage in STAGES if stage != "hand-over")
    return out


@contextmanager
def collector() -> Iterator[tuple[str, dict[str, Spans]]]:
    """An OTLP receiver: its address, and each request's spans by its id as they come."""
    traces: dict[str, Spans] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            note(ExportTraceServiceRequest.FromString(body), traces)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_request(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", traces
    finally:
        server.shutdown()
        server.server_close()


def note(sent: ExportTraceServiceRequest, traces: dict[str, Spans]) -> None:
    """Put the spans where their request's id is known; a request's come together."""
    spans = [span for r in sent.resource_spans for s in r.scope_spans for span in s.spans]
    names = {
        span.trace_id: attribute.value.string_value
        for span in spans
        for attribute in span.attributes
        if attribute.key == "messaging.message.id"
    }
    by_trace: dict[bytes, Spans] = {}
    for span in spans:
        times = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
        by_trace.setdefault(span.trace_id, {})[span.name] = times
    for trace, found in by_trace.items():
        if trace in names and found.keys() >= set(WORKER_STAGES):
            traces[names[trace]] = found


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _two(milliseconds: list[float]) -> tuple[float, float]:
    return median(milliseconds), percentile(milliseconds, 0.99)


if __name__ == "__main__":
    main()
