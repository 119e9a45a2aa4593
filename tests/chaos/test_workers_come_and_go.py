"""Workers that join, leave and are stopped under load: only work cut by a deadline is repeated."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.chaos.test_workers_die import image_requests
from tests.fleet.arena import Arena
from tests.fleet.workers import until
from tests.services.addresses import KafkaAddress, MinioAddress


def test_joining_and_leaving_under_load_repeats_no_work(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    # 20 ms per image, so that there is work left when the second worker has joined.
    arena = make_arena(kafka, minio, engine={"max_batch": 1})
    first = arena.fleet.start("first").wait_ready()
    until(lambda: first.partitions() == 12, 30, "the first has all partitions")
    arena.send(image_requests(1_000))
    arena.wait_answered(60, share=0.1)
    second = arena.fleet.start("second").wait_ready()
    until(lambda: second.partitions() == 6, 30, "the second has its half")
    arena.wait_answered(60, share=0.5)
    first.signal(signal.SIGTERM)
    assert first.wait(40) == 0

    report = arena.wait_answered(120)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 1_000}
    # The drain time was long enough for everything, so nothing may have been generated twice.
    assert sum(arena.fleet.generated().values()) == 1_000
    shares = [
        len([line for line in w.lines() if line["message"] == "generated"]) for w in arena.fleet.workers
    ]
    assert min(shares) > 100


def test_an_image_begun_under_a_lost_membership_is_not_published_next_to_the_new_one(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    extra = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "500"}
    # Longer than a return to the group takes, even on a busy machine.
    faults = {"slow": "slow:15"}
    arena = make_arena(
        kafka, minio, kafka={"extra": extra}, engine={"simulated_faults": faults, "simulated_ms": 0}
    )
    only = arena.fleet.start("only").wait_ready()
    arena.send(image_requests(1, "slow"))
    only.wait_begun()
    time.sleep(0.5)
    only.signal(signal.SIGSTOP)
    time.sleep(3.5)
    only.signal(signal.SIGCONT)
    # It has its partitions back while the engine is still working on the image that it began before.
    until(lambda: sum("took over" in line["message"] for line in only.lines()) >= 2, 20, "it is back")
    until(lambda: sum(arena.fleet.generated().values()) == 2, 40, "it is repeated under the new membership")
    time.sleep(1)
    arena.assert_exactly_once(arena.wait_answered(20))
    assert any("discarded an outcome" in line["message"] for line in only.lines())


def test_sigterm_under_load_ends_in_time_and_leaves_no_open_mark(arena: Arena) -> None:
    # A minute's work, so that most of it is left when the worker is stopped, however slow the machine.
    first = arena.fleet.start("first", ZIMAGE_ENGINE__SIMULATED_MS="1600").wait_ready()
    arena.send(image_requests(700))
    arena.wait_answered(60, share=0.1)
    told = time.monotonic()
    first.signal(signal.SIGTERM)
    assert first.wait(40) == 0
    assert time.monotonic() - told < arena.settings.worker.drain_timeout_s
    answered_by_first = arena.answered()
    assert answered_by_first < 700
    assert arena.fleet.generated().total() == answered_by_first

    arena.fleet.start("second").wait_ready()
    report = arena.wait_answered(120)
    arena.assert_exactly_once(report)
    assert arena.fleet.generated().total() == 700


def test_only_work_cut_by_the_drain_deadline_is_repeated(arena: Arena) -> None:
    # One image takes 2 s and the drain time is half a second: what is on the engine is cut.
    slow = {"ZIMAGE_ENGINE__SIMULATED_MS": "32000", "ZIMAGE_WORKER__DRAIN_TIMEOUT_S": "0.5"}
    first = arena.fleet.start("first", **slow).wait_ready()
    arena.send([*image_requests(20)])
    until(lambda: len(arena.seen()) >= 8, 60, "a batch is answered")
    first.signal(signal.SIGTERM)
    assert first.wait(20) == 0
    by_first = {name for (name, r) in arena.report().by_request().items() if r["worker"] == "first"}
    # What was cut was not finished, and what was finished was published.
    assert set(arena.fleet.generated()) == by_first

    arena.fleet.start("second").wait_ready()
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 20}
    assert all(result["attempts"] <= 1 for result in report.by_request().values())
    assert arena.fleet.generated().total() == 20


def test_work_running_at_a_sigterm_is_finished_before_the_worker_leaves(arena: Arena) -> None:
    faults = {"ZIMAGE_ENGINE__SIMULATED_FAULTS": '{"slow": "slow:5"}'}
    worker = arena.fleet.start("worker", **faults).wait_ready()
    arena.send(image_requests(1, "slow"))
    worker.wait_begun()
    time.sleep(0.5)
    worker.signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    arena.assert_exactly_once(arena.report())
    said = [line["message"] for line in worker.lines()]
    told = next(at for at, message in enumerate(said) if "SIGTERM" in message)
    assert "succeeded" in said[told:]


def test_a_second_sigterm_ends_the_worker_at_once(arena: Arena) -> None:
    worker = arena.fleet.start("first", ZIMAGE_ENGINE__SIMULATED_MS="160000").wait_ready()
    arena.send(image_requests(4))
    worker.wait_begun()
    time.sleep(0.5)
    worker.signal(signal.SIGTERM)
    until(lambda: any("SIGTERM" in line["message"] for line in worker.lines()), 10, "it got the first one")
    worker.signal(signal.SIGTERM)
    assert worker.wait(3) == 128 + signal.SIGTERM


def test_two_processes_in_one_slot_do_not_fence_each_other_forever(arena: Arena) -> None:
    arena.fleet.start("slot").wait_ready()
    # As a second machine would be that was given the same slot name.
    arena.fleet.start("twin", slot="slot")
    for round_ in range(400):
        arena.send(image_requests(10, f"round {round_}"))
        time.sleep(0.5)
        ended = [worker for worker in arena.fleet.workers if worker.exit_code() is not None]
        if ended:
            break
    assert [worker.exit_code() for worker in ended] == [72]
    report = arena.wait_answered(90)
    arena.assert_exactly_once(report)
