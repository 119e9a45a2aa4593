"""The run of the demo: an embedded or configured broker, a worker process, 24 prompts and a poison record."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from zimage_stream.cli.demo.prompts import POISON, SIDE, requests
from zimage_stream.client.gallery import write_gallery
from zimage_stream.client.prompt_client import PromptClient
from zimage_stream.deadline import Deadline
from zimage_stream.errors import ResultTimeoutError, StoreError, ZImageError
from zimage_stream.escaping import escaped
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.imaging import contact_sheet
from zimage_stream.kafka.clients import create_producer
from zimage_stream.kafka.embedded import EmbeddedBroker
from zimage_stream.kafka.reader import POLL_S, TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.kafka.topics import create_topics
from zimage_stream.settings import Settings, TopicSettings, environment_of, load_settings
from zimage_stream.stores import create_store

TOPICS = TopicSettings(
    requests="zimage-demo.requests",
    results="zimage-demo.results",
    dead_letters="zimage-demo.dead-letters",
    cancellations="zimage-demo.cancellations",
    progress="zimage-demo.progress",
)
STARTUP_S = 600.0
TIMEOUT_S = 120.0


class WorkerDiedError(ZImageError):
    """The demo's worker ended too early."""


@dataclass(frozen=True, slots=True)
class SavedImage:
    """A saved image: its request, its result, and its file, relative to the page."""

    request: PromptRequest
    result: ImageResult
    file: str

    def row(self) -> dict[str, Any]:
        """Build the image's row of the gallery."""
        request, image = self.request, self.result.image
        assert image is not None
        return {
            "request_id": request.request_id,
            "tenant": request.tenant,
            "status": self.result.status,
            "prompt": request.prompt,
            "file": self.file,
            "width": image.width,
            "height": image.height,
            "seed": image.seed,
            "steps": image.steps,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of the demo.

    Attributes:
        results: results by request id, in order of arrival.
        elapsed_s: duration in seconds.
        busy: fraction of the time that the engine was busy, 0 to 1.
        dead_letters: the demo's dead letters, as lines for people.
    """

    results: dict[str, ImageResult]
    elapsed_s: float
    busy: float
    dead_letters: list[str]


def run_demo(config: Path | None, configured: bool, out: Path, console: Console) -> int:
    """Run the demo, report its outcome and return the exit code.

    Raises:
        ZImageError: a dependency is unavailable.
    """
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if configured:
            settings = load_settings(config, _overrides())
            create_topics(settings.kafka, settings.topics)
        else:
            console.print("Starting an embedded broker and a worker with the packaged checkpoint.")
            broker = stack.enter_context(EmbeddedBroker(TOPICS))
            settings = load_settings(None, _embedded(broker.bootstrap_servers, out))
        _create_store(settings)
        port = stack.enter_context(_worker(settings, out / "worker.log", console))
        sent = requests()
        outcome = _serve(settings, sent, port, console)
        saved = _save(settings, sent, outcome, out)
    _report(outcome, sent, saved, settings, out, console)
    return 0 if len(saved) == len(sent) and len(outcome.dead_letters) == 1 else 1


def _embedded(bootstrap_servers: str, out: Path) -> dict[str, Any]:
    return _overrides() | {
        "kafka": {"bootstrap_servers": bootstrap_servers},
        "registry": {"url": None},
        "store": {"kind": "directory", "path": str((out / "store").resolve())},
        # The embedded broker does not store transactional offsets.
        "worker": {"guarantee": "at_least_once", "group_id": "zimage-demo"},
    }


def _overrides() -> dict[str, Any]:
    """Settings of the demo that override the configuration: its own topics and the packaged model."""
    return {
        "topics": TOPICS.model_dump(),
        "worker": {"group_id": "zimage-demo"},
        "engine": {"kind": "zimage", "model": "tiny"},
        "telemetry": {"port": _free_port()},
    }


def _create_store(settings: Settings) -> None:
    store = create_store(settings.store)
    try:
        store.create()
    finally:
        store.close()


@contextlib.contextmanager
def _worker(settings: Settings, log: Path, console: Console) -> Iterator[int]:
    """Run a worker process with these settings; yield its health port once it is ready."""
    port = settings.telemetry.port
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "zimage_stream", "worker", "--no-supervise"],
            env=environment_of(settings),
            stdin=subprocess.DEVNULL,
            stderr=sink,
            stdout=sink,
        )
        try:
            with console.status("Loading the model"):
                _wait_ready(process, port, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(settings.worker.drain_timeout_s + 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").splitlines()[-5:]
            raise WorkerDiedError("the worker ended during startup:\n" + "\n".join(lines))
        with contextlib.suppress(OSError):
            if _get(port, "readyz"):
                return
        time.sleep(0.1)
    raise WorkerDiedError(f"the worker was not ready within {STARTUP_S:.0f} s; see its log, {log}")


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return str(answer.read().decode())


def _serve(settings: Settings, sent: Sequence[PromptRequest], port: int, console: Console) -> Outcome:
    results: dict[str, ImageResult] = {}
    started, busy_before = time.monotonic(), _busy_seconds(port)
    columns = (
        SpinnerColumn(),
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with PromptClient(settings) as client, Progress(*columns, console=console) as progress:
        task = progress.add_task("images", total=len(sent))
        for index, request in enumerate(sent):
            client.submit(request)
            if index == len(sent) // 2:
                _send_poison(settings)
        try:
            for result in client.results([request.request_id for request in sent], timeout=TIMEOUT_S):
                results[result.request_id] = result
                progress.advance(task)
        except ResultTimeoutError as error:
            console.print(escaped(str(error)), style="red")
    first = min((r.started_at.timestamp() for r in results.values() if r.started_at), default=0.0)
    last = max((r.completed_at.timestamp() for r in results.values()), default=1.0)
    busy = (_busy_seconds(port) - busy_before) / max(last - first, 1e-9)
    return Outcome(results, time.monotonic() - started, min(1.0, busy), _dead_letters(settings))


def _busy_seconds(port: int) -> float:
    for line in _get(port, "metrics").splitlines():
        if line.startswith("zimage_engine_busy_seconds_total"):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def _send_poison(settings: Settings) -> None:
    producer = create_producer(settings.kafka)
    producer.produce(settings.topics.requests, key=b"poison", value=POISON)
    producer.flush(10)


def _dead_letters(settings: Settings) -> list[str]:
    """Return this run's dead letter, whose value is the demo's poison record, as a line for people."""
    with TopicReader(settings.kafka, settings.topics.dead_letters) as reader:
        # Transaction markers occupy offsets too, so the last letter is at most two offsets before the end.
        reader.start({number: max(0, end - 2) for number, end in reader.end_offsets().items()})
        deadline = Deadline(10.0)
        while not deadline.passed:
            record = reader.poll(POLL_S)
            if record is not None and record.value == POISON:
                return [_describe(record)]
    return []


def _describe(letter: Record) -> str:
    headers = {name: value.decode() for name, value in letter.headers if value is not None}
    return (
        f"{headers['zimage.code']}: {headers['__connect.errors.exception.message']} "
        f"(partition {headers['__connect.errors.partition']}, offset {headers['__connect.errors.offset']})"
    )


def _save(settings: Settings, sent: Sequence[PromptRequest], outcome: Outcome, out: Path) -> list[SavedImage]:
    """Download the images, check each against its result, and write the contact sheet and the gallery."""
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    store = create_store(settings.store)
    saved, images = [], []
    try:
        for number, request in enumerate(sent, 1):
            result = outcome.results.get(request.request_id)
            if result is None or result.image is None:
                continue
            data = store.get(result.image.key)
            if hashlib.sha256(data).hexdigest() != result.image.sha256:
                raise StoreError(f"{result.image.uri} does not match its result: the sha256 differs")
            file = folder / f"{number:02d}.png"
            file.write_bytes(data)
            images.append(Image.open(io.BytesIO(data)).convert("RGB"))
            saved.append(SavedImage(request, result, f"images/{file.name}"))
    finally:
        store.close()
    if images:
        contact_sheet(images, columns=6, cell=2 * SIDE).save(out / "contact-sheet.png")
    note = "".join(f"Dead letter: {line}\n" for line in outcome.dead_letters)
    write_gallery(out, "zimage_stream demo", (each.row() for each in saved), note)
    return saved


def _report(
    outcome: Outcome,
    sent: Sequence[PromptRequest],
    saved: Sequence[SavedImage],
    settings: Settings,
    out: Path,
    console: Console,
) -> None:
    totals = sorted(r.timing.total_ms for r in outcome.results.values() if r.timing.total_ms is not None)
    cuts = quantiles(totals, n=20, method="inclusive") if len(totals) > 1 else [0.0] * 19
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("images", f"{len(saved)} of {len(sent)}")
    table.add_row("images/s", f"{len(saved) / outcome.elapsed_s:.1f}")
    table.add_row("request to result", f"p50 {cuts[9]:.0f} ms, p95 {cuts[18]:.0f} ms")
    table.add_row("engine busy", f"{outcome.busy:.0%}")
    table.add_row("guarantee", settings.worker.guarantee)
    console.print(table)
    for line in outcome.dead_letters or ["none, although a poison record was sent"]:
        console.print(escaped(f"dead letter: {line}"), soft_wrap=True)
    for path in ("contact-sheet.png", "index.html"):
        console.print(escaped(str(out / path)), soft_wrap=True)
    console.print("\nNext, with your own Kafka and store (see “Against a real cluster” in the README):")
    console.print('  zimage produce "a red heart on a white background" --wait --out pictures')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
