"""Devices that fail, hang and vanish: their workers are replaced, and no innocent request is charged."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from tests.chaos.test_workers_die import image_requests
from tests.fleet.arena import Arena
from tests.fleet.supervised import Supervised, alive
from tests.fleet.workers import WorkerProcess, until
from tests.services import KafkaAddress, MinioAddress
from zimage_stream import PromptRequest

SESSION_S = 8.0
"""A session timeout at which a hold-up would show: long compared with delays on an overloaded machine."""


def test_one_sick_device_of_three_leaves_at_once_and_the_others_finish(arena: Arena) -> None:
    # Every generation fails on it, the known-good image included.
    sick = arena.fleet.start("sick", ZIMAGE_ENGINE__SIMULATED_FAULTS=json.dumps({"": "raise"}))
    healthy = [arena.fleet.start(name) for name in ("one", "two")]
    for worker in (sick, *healthy):
        worker.wait_ready()
    until(lambda: all(worker.partitions() for worker in (sick, *healthy)), 30, "all hold partitions")
    arena.send(image_requests(300))

    assert sick.wait(30) == 70
    report = arena.wait_answered(90)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 300}
    assert {result["attempts"] for (result,) in report.results.values()} == {1}
    assert {result["worker"] for (result,) in report.results.values()} == {"one", "two"}
    # One batch, and one request of it alone, were enough to find out.
    said = [line["message"] for line in sick.lines()]
    assert sum("failed, continuing in batches of" in message for message in said) <= 1
    assert sum("the device is sick" in message for message in said) == 1


def test_the_other_worker_continues_while_the_group_waits_for_a_dead_member_and_its_transaction(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    # 40 ms per image, so that the other worker has work of its own for 12 s.
    extra = {"session.timeout.ms": str(int(SESSION_S * 1e3)), "heartbeat.interval.ms": "1000"}
    arena = make_arena(kafka, minio, kafka={"extra": extra}, engine={"max_batch": 1, "simulated_ms": 640})
    # Offsets of an abandoned transaction are pending until the broker times it out, after 10 to 20 s.
    dying = arena.fleet.start("dying", ZIMAGE_FAILPOINT="offsets-sent:25")
    other = arena.fleet.start("other")
    for worker in (dying, other):
        worker.wait_ready()
    until(lambda: dying.partitions() and other.partitions(), 30, "both hold partitions")
    arena.send(image_requests(600))

    dying.wait(60)
    died = time.time()
    until(lambda: other.partitions() == 12, 60, "the other one has all of the dead one's partitions")
    after = [at for at in done(other) if died < at < taken_over(other)]
    # Neither its commits nor reading the dead worker's checkpoints may hold up what it already has.
    assert after[-1] > died + SESSION_S
    assert max(later - earlier for earlier, later in pairwise([died, *after])) < SESSION_S / 2
    arena.assert_exactly_once(arena.wait_answered(90))


def done(worker: WorkerProcess) -> list[float]:
    """When its results were published, in UNIX time."""
    return said(worker, "succeeded")


def taken_over(worker: WorkerProcess) -> float:
    """When it last took over partitions, in UNIX time."""
    return said(worker, "took over")[-1]


def said(worker: WorkerProcess, start: str) -> list[float]:
    """When it logged lines that start like this, in UNIX time."""
    return [
        datetime.fromisoformat(line["time"]).timestamp()
        for line in worker.lines()
        if line["message"].startswith(start)
    ]


def test_a_worker_that_is_killed_loses_its_context_or_hangs_is_replaced_and_the_others_continue(
    arena: Arena, tmp_path: Path
) -> None:
    playing = {
        "ZIMAGE_ENGINE__SIMULATED_FAULTS": json.dumps({"cursed": "lost", "endless": "hang"}),
        # An overloaded machine may delay an innocent image for seconds. Two such stalls of the same request,
        # each while it runs alone, are needed to convict it.
        "ZIMAGE_ENGINE__HANG_TIMEOUT_S": "4",
        "ZIMAGE_WORKER__MAX_ATTEMPTS": "2",
    }
    with Supervised(arena, tmp_path / "supervisor.log", playing, workers=3) as running:
        running.wait_with_work(3)
        victim, *others = running.started()
        arena.send(image_requests(150))
        arena.wait_answered(60, share=0.1)
        os.kill(victim, signal.SIGKILL)
        # Run to the end: a request that is alone on the device when its process is killed is charged.
        report = arena.wait_answered(90)
        assert report.statuses() == {"SUCCEEDED": 150}
        assert len(running.started()) == 4
        assert all(alive(pid) for pid in others)

        guilty = [PromptRequest(prompt=p, width=256, height=256) for p in ("cursed", "endless")]
        arena.send([*image_requests(100, "before"), *guilty, *image_requests(100, "after")])
        report = arena.wait_answered(240)
        arena.assert_exactly_once(report)
        results = report.by_request()
        for request in guilty:
            ended = results.pop(request.request_id)
            assert (ended["error"]["code"], ended["attempts"]) == ("WORKER_CRASHED", 2)
        assert {result["status"] for result in results.values()} == {"SUCCEEDED"}
        deaths = running.words().count("restarting it in")
        # The kill, and at least two deaths for each of the two requests that are convicted by them.
        assert deaths >= 1 + 4
        until(lambda: len(running.started()) == 3 + deaths, 30, "each death is followed by one start")
        assert "exit code 71, context lost" in running.words()
        assert "exit code 73, hung" in running.words()
        assert running.stop() == 0
