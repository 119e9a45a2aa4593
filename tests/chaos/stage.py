"""The stage that a scenario plays on: workers that are kept alive, a producer, and a separate judge."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import fastavro
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from tests.fleet.arena import Arena, client_config
from tests.fleet.checker import position_of
from tests.fleet.workers import WorkerProcess, until
from tests.services.native.cluster import KafkaCluster
from tests.services.native.kafka import Kafka
from tests.services.native.minio import Minio
from zimage_stream import PromptRequest
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import SINGLE_OBJECT, Codec
from zimage_stream.events.image_result import Source
from zimage_stream.events.schemas import PROMPT_REQUEST, published

ANSWERED_WITHIN_S = 120.0
"""Even on a busy machine less than the time that pytest gives a test."""
STOPPED_WITHIN_S = 60.0
"""Timeout for :meth:`WorkerProcess.wait`."""
SUCCEEDED = ("SUCCEEDED",)


@dataclass(frozen=True)
class Services:
    """Servers that a scenario may kill, pause and restart.

    Attributes:
        kafka: a single broker.
        cluster: three brokers.
    """

    kafka: Kafka
    minio: Minio
    cluster: KafkaCluster

    def use(self, chosen: Kafka | KafkaCluster) -> None:
        """Start one of the two and stop the other, which keeps its data: memory need not hold both."""
        (self.kafka if chosen is self.cluster else self.cluster).stop()
        chosen.start()

    def reset(self) -> None:
        """Restart whatever a run that broke off has killed or frozen, for the next run."""
        self.kafka.stop()
        self.cluster.stop()
        self.minio.stop()
        self.minio.start()


@dataclass(frozen=True)
class Row:
    """The result of a run.

    Attributes:
        faults: number of faults injected.
        recoveries: for each fault, seconds until everything accepted before it is answered, from the death or
            freezing of a worker, or from the return of a broker or a store.
        problems: the judge's findings by kind; empty if there are none.
    """

    name: str
    faults: int
    accepted: int
    outcomes: Mapping[str, int]
    recoveries: Sequence[float]
    problems: Mapping[str, Sequence[str]]

    def __str__(self) -> str:
        times = f"{median(self.recoveries):5.1f} {max(self.recoveries):6.1f}" if self.recoveries else " " * 12
        return f"{self.name:<34}{self.faults:>7}{self.accepted:>9}  {times}  {self.verdict}"

    @property
    def verdict(self) -> str:
        found = [f"{len(what)} {kind}: {what[0]}" for kind, what in self.problems.items()]
        return "; ".join(found) or "exactly once"


class Stage:
    """Workers, a workload and a judge for one run. Created by :func:`open_stage`.

    Args:
        environment: environment variables of the workers, on top of the arena's settings.
        seed: seed of every choice that a scenario makes.
    """

    def __init__(
        self,
        arena: Arena,
        services: Services,
        folder: Path,
        partitions: int,
        environment: Mapping[str, str],
        seed: int,
    ) -> None:
        self.arena = arena
        self.began = time.time()
        self.kafka = services.kafka
        self.cluster = services.cluster
        self.minio = services.minio
        self.partitions = partitions
        self.rng = random.Random(seed)
        self.playing = threading.Event()
        """Set for as long as the workload continues."""
        self.crew: list[WorkerProcess] = []
        self.next_life: Callable[[], Mapping[str, str]] = dict
        """Additional environment variables for a worker that is restarted."""
        self.environment = dict(environment)
        self.folder = folder
        self.at_end: list[Callable[[], object]] = []
        """Called at the end of the run, whatever its result."""
        self.program = "zimage_stream"
        """Module that workers run; another one may run the same program under other circumstances."""
        self._faults: list[float] = []
        self._codec = Codec()
        self._producer = self._new_producer()
        self._sending = threading.Lock()
        self._accepted_file = (folder / "accepted").open("w", buffering=1)
        self._cancelled_file = (folder / "cancelled").open("w", buffering=1)
        self._cancelled: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._accepted: dict[tuple[int, int], float] = {}
        self._reading = threading.Lock()
        self._events_read = 0
        self._answered: dict[tuple[int, int], float] = {}
        self._stopped: frozenset[int] = frozenset()
        self._sent = 0
        self._over = threading.Event()
        self._resting: set[WorkerProcess] = set()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._judge = self._start_judge()

    # -- workers

    def start_workers(self, count: int = 3, *, wait: bool = True) -> None:
        """Start workers that are restarted whenever they end, and wait until all serve.

        Args:
            wait: ``False`` where they cannot serve everything yet.
        """
        for number in range(count):
            # Different bytes for equal specs: if one ever overwrites another's object, the digest shows it.
            salt = {"ZIMAGE_ENGINE__SIMULATED_SALT": str(number)}
            worker = self.arena.fleet.add(f"worker-{number}", **self.environment, **salt)
            worker.program = self.program
            worker.start(**self.next_life())
            self.crew.append(worker)
        if not self._keeper.is_alive():
            self._keeper.start()
        for worker in self.crew if wait else ():
            until(lambda worker=worker: worker.ready()[0], 60, f"{worker.name} is ready")  # type: ignore[misc]

    def wait_told(self, words: str) -> None:
        """Wait until a worker reports this in ``/readyz``."""
        until(lambda: any(words in reason for reason in self.told()), 60, f"/readyz says {words!r}")

    def told(self) -> list[str]:
        """All reasons that the workers currently give for not being ready."""
        return [reason for worker in self.crew for reason in worker.ready()[1]]

    def rest(self, worker: WorkerProcess) -> None:
        """Do not restart this worker when it ends."""
        self._resting.add(worker)

    def wake(self, worker: WorkerProcess) -> None:
        """Restart this worker, and keep restarting it from now on."""
        worker.start(**self.next_life())
        self._resting.discard(worker)

    def stop_workers(self) -> None:
        """Stop all workers as an operator does; all must leave cleanly."""
        for worker in self.crew:
            self.rest(worker)
        running = [worker for worker in self.crew if worker.exit_code() is None]
        for worker in running:
            worker.signal(signal.SIGTERM)
        codes = {worker.name: worker.wait(STOPPED_WITHIN_S) for worker in running}
        assert set(codes.values()) <= {0, -signal.SIGTERM}, codes

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            for worker in list(self.crew):
                if worker not in self._resting and worker.exit_code() is not None:
                    worker.start(**self.next_life())

    # -- requests

    def send(self, request: PromptRequest, allowed: Sequence[str] = SUCCEEDED) -> None:
        """Produce a request to any partition."""
        value = self._encoded(request)
        known = {
            "request_id": request.request_id,
            "tenant": request.tenant,
            "attributes": dict(request.attributes),
        }
        self.send_bytes(value, allowed, known)

    def _encoded(self, request: PromptRequest) -> bytes:
        """The request as a producer that is upgraded after the workers writes it: in the first version of its
        schema, unless it uses a field that is newer."""
        if request.previews:
            return self._codec.encode_request(request, self.arena.settings.topics.requests)
        first = published()[PROMPT_REQUEST][0]
        out = io.BytesIO(SINGLE_OBJECT + first.fingerprint)
        out.seek(0, io.SEEK_END)
        fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
        fastavro.schemaless_writer(out, first.parsed, fields)
        return out.getvalue()

    def send_bytes(
        self, value: bytes, allowed: Sequence[str], known: Mapping[str, Any] | None = None
    ) -> None:
        """Produce this value verbatim."""
        line = {"request_id": None, "tenant": None, "attributes": None, **(known or {})}
        line |= {"sha256": hashlib.sha256(value).hexdigest(), "allowed": list(allowed)}

        def delivered(error: Any, message: Any) -> None:
            assert error is None, f"the workload could not be sent: {error}"
            kafka = client_config(self.arena.settings.kafka)
            self.accept(*position_of(kafka, message, self._accepted), line)

        topic = self.arena.settings.topics.requests
        with self._sending:
            partition = self._sent % self.partitions
            self._sent += 1
            self._producer.produce(topic, value, b"key", partition, on_delivery=delivered)
            self._producer.poll(0)

    def accept(self, partition: int, offset: int, line: Mapping[str, Any]) -> None:
        """Record that a message is safely in the topic."""
        with self._lock:
            self._accepted[partition, offset] = time.time()
            self._accepted_file.write(json.dumps({**line, "partition": partition, "offset": offset}) + "\n")

    def some(self, count: int, latest: int = 60) -> list[tuple[int, int]]:
        """Up to this many records at random, among the latest that were accepted and are not cancelled."""
        with self._lock:
            known = [place for place in list(self._accepted)[-latest:] if place not in self._cancelled]
        return self.rng.sample(known, min(count, len(known)))

    def cancel(self, places: Collection[tuple[int, int]], *, strict: bool = False) -> None:
        """Cancel the requests in these records. From then on they may end as CANCELLED.

        Args:
            strict: they must, since no worker has seen them.
        """
        topics = self.arena.settings.topics

        def note(place: tuple[int, int], at: float | None) -> None:
            line = {"partition": place[0], "offset": place[1], "at": at, "strict": strict}
            self._cancelled_file.write(json.dumps(line) + "\n")

        for partition, offset in places:
            place = partition, offset
            cancellation = Cancellation(
                request_id="any",
                source=Source(topic=topics.requests, partition=partition, offset=offset),
                requested_at=datetime.now(UTC),
            )
            value = self._codec.encode_cancellation(cancellation, topics.cancellations)

            def delivered(error: Any, message: Any, place: tuple[int, int] = place) -> None:
                assert error is None, f"a cancellation could not be sent: {error}"
                note(place, time.time())

            with self._sending:
                # Before it is sent: its acknowledgement may be late, or lost with a broker.
                self._cancelled.add(place)
                note(place, None)
                self._producer.produce(topics.cancellations, value, b"any", partition, on_delivery=delivered)
                self._producer.poll(0)

    def add_partitions(self, count: int) -> None:
        """Raise the number of partitions of the requests topic, and use the new ones."""
        topic = self.arena.settings.topics.requests
        admin = AdminClient({**client_config(self.arena.settings.kafka)})
        admin.create_partitions([NewPartitions(topic, count)])[topic].result(120)
        until(
            lambda: len(self._producer.list_topics(topic, timeout=120).topics[topic].partitions) == count,
            30,
            "the producer knows the new partitions",
        )
        self.partitions = count

    def flush(self) -> None:
        """Wait until everything sent has been accepted."""
        left = self._producer.flush(120)
        assert left == 0, f"{left} records could not be sent"

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Pause sending while the context is open, once everything sent before it is answered."""
        with self._sending:
            self.wait_answered()
            yield
            # The old producer would continue its sequence, an error where the log was cut behind its back.
            self._producer = self._new_producer()

    def log_was_cut(self, stopped: Collection[int]) -> None:
        """Tell the judge that Kafka lost accepted requests.

        Args:
            stopped: partitions that the workers report as not served any more, and why.
        """
        self._stopped = frozenset(stopped)
        (self.folder / "cut").write_text(json.dumps(sorted(stopped)))

    def unanswered(self) -> int:
        """Accepted records without an answer seen by the judge, except those waiting in a stopped
        partition."""
        with self._lock:
            open_ = self._accepted.keys() - self._answers().keys()
        return sum(partition not in self._stopped for partition, _ in open_)

    def wait_served(self, partitions: Collection[int], timeout_s: float) -> None:
        """Wait until every record that these partitions have now is answered."""
        with self._lock:
            due = {place for place in self._accepted if place[0] in partitions}
        assert due, f"nothing was accepted in {partitions}"
        until(lambda: due <= self._answers().keys(), timeout_s, f"partitions {partitions} are served")

    def wait_answered(self) -> None:
        """Wait until every accepted record is answered."""
        self.flush()
        try:
            until(self._all_answered, ANSWERED_WITHIN_S, "all that was accepted is answered")
        except AssertionError as error:
            error.add_note(self._findings())
            raise

    def _all_answered(self) -> bool:
        judge_ended = self._judge.poll()
        assert judge_ended is None, f"the judge has ended with {judge_ended}"
        return not self.unanswered()

    def _findings(self) -> str:
        """What is known of the requests that wait: where they are, and what the workers say of the first."""
        with self._lock:
            waiting = sorted(self._accepted.keys() - self._answers().keys())
        lines = [
            f"{len(waiting)} of {len(self._accepted)} are not answered, the first at {waiting[:5]}",
            *(f"{worker.name} in /readyz: {worker.ready()}" for worker in self.crew),
            f"judge: {(self.folder / 'judge.log').read_text()[-2000:]}",
        ]
        if waiting:
            partition, offset = waiting[0]
            for worker in self.crew:
                about = [each for each in worker.lines() if each.get("partition") == partition]
                lines += [f"{worker.name}: {each}" for each in about if each.get("offset") == offset][-20:]
                lines += [f"{worker.name}, last: {each}" for each in worker.lines()[-5:]]
        return "\n".join(lines)

    # -- faults

    def fault(self) -> None:
        """Record a fault: at its start if others can take over at once, at its end if they cannot."""
        self._faults.append(time.time())

    def pause(self, low_s: float, high_s: float | None = None) -> None:
        """Wait, while the workload continues."""
        time.sleep(self.rng.uniform(low_s, high_s or low_s))

    # -- judgement

    def close(self, name: str, recovery_s: float | None = None) -> Row:
        """Wait for all answers, stop the workers, and have the run judged.

        Args:
            recovery_s: longest recovery permitted after the last fault; ``None`` for any.
        """
        self.wait_answered()
        self.stop_workers()
        self._over.set()
        self._accepted_file.close()
        self._cancelled_file.close()
        assert self._judge.stdin is not None
        self._judge.stdin.close()
        assert self._judge.wait(300) == 0, (self.folder / "judge.log").read_text()[-3000:]
        report = json.loads((self.folder / "report").read_text())
        recoveries = self._recoveries()
        problems = dict(report["problems"])
        if recovery_s is not None and recoveries and recoveries[-1] > recovery_s:
            problems["slow recovery"] = [f"{recoveries[-1]:.1f} s, at most {recovery_s:g} s"]
        return Row(name, len(self._faults), report["accepted"], report["outcomes"], recoveries, problems)

    def abandon(self) -> None:
        """Clean up after a failure: nothing may outlive the test."""
        self._over.set()
        if self._judge.poll() is None:
            self._judge.kill()
            self._judge.wait()
        self._accepted_file.close()
        self._cancelled_file.close()
        if self._judge.stdin is not None:
            with suppress(BrokenPipeError):
                self._judge.stdin.close()
        for each in self.crew:
            each.close()
        for clean_up in self.at_end:
            clean_up()

    def _recoveries(self) -> list[float]:
        """For each fault, the seconds until the last answer to anything accepted before it."""
        answers = self._answers()
        accepted = sorted((at, answers[place]) for place, at in self._accepted.items() if place in answers)
        times = [at for at, _ in accepted]
        last = [0.0, *itertools.accumulate((answered for _, answered in accepted), max)]
        return [max(0.0, last[bisect.bisect_right(times, fault)] - fault) for fault in self._faults]

    def _answers(self) -> dict[tuple[int, int], float]:
        """When the judge first saw each answer."""
        events = self.folder / "events"
        with self._reading:
            if events.exists():
                with events.open("rb") as source:
                    source.seek(self._events_read)
                    for line in source:
                        if not line.endswith(b"\n"):
                            break
                        self._events_read += len(line)
                        event = json.loads(line)
                        self._answered.setdefault((event["place"][0], event["place"][1]), event["t"])
            return dict(self._answered)

    def _new_producer(self) -> Producer:
        return Producer(
            {
                **client_config(self.arena.settings.kafka),
                "enable.idempotence": True,
                "linger.ms": 2,
                "message.max.bytes": 2 << 20,
                # A broker that is away is part of the scenario.
                "log_level": 0,
            }
        )

    def _start_judge(self) -> subprocess.Popen[bytes]:
        settings = self.arena.settings
        store = settings.store
        secret = store.secret_key.get_secret_value() if store.secret_key else None
        keys = {"endpoint": store.endpoint, "access_key": store.access_key, "secret_key": secret}
        plan = {
            "kafka": client_config(settings.kafka),
            "requests": settings.topics.requests,
            "results": settings.topics.results,
            "dead_letters": settings.topics.dead_letters,
            "group": settings.worker.group_id,
            "store": {"path": str(store.path)}
            if store.kind == "directory"
            else {**keys, "bucket": store.bucket},
            **{
                name: str(self.folder / name) for name in ("accepted", "cancelled", "cut", "events", "report")
            },
        }
        (self.folder / "plan").write_text(json.dumps(plan))
        with (self.folder / "judge.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.verify", str(self.folder / "plan")],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )


@contextmanager
def open_stage(
    arena: Arena,
    services: Services,
    folder: Path,
    partitions: int,
    environment: Mapping[str, str],
    seed: int,
) -> Iterator[Stage]:
    """A stage on an arena's topics; nothing that it starts outlives it."""
    stage = Stage(arena, services, folder, partitions, environment, seed)
    try:
        yield stage
    finally:
        stage.abandon()
