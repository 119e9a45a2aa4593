"""``zimage worker`` with several workers: one death affects no other, and none outlives the supervisor."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import zimage_stream.engines
from tests.fleet.arena import Arena
from tests.fleet.supervised import Supervised, alive
from tests.fleet.workers import until
from tests.services import KafkaAddress, MinioAddress
from zimage_stream import PromptRequest

CHECKPOINT = Path(zimage_stream.engines.__file__).parent / "tiny"


@pytest.fixture
def supervised(arena: Arena, tmp_path: Path) -> Iterator[Supervised]:
    with Supervised(arena, tmp_path / "supervisor.log") as running:
        yield running.wait_with_work()


def image_requests(count: int) -> list[PromptRequest]:
    return [PromptRequest(prompt=f"picture {i}", width=256, height=256) for i in range(count)]


def test_a_killed_worker_is_restarted_and_the_other_continues(arena: Arena, supervised: Supervised) -> None:
    first, second = supervised.started()
    arena.send(image_requests(200))
    os.kill(first, signal.SIGKILL)
    until(lambda: len(supervised.started()) == 3, 20, "the killed one is started again")
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert alive(second)
    assert "killed by SIGKILL" in supervised.words()

    assert supervised.stop() == 0


def test_one_port_serves_the_metrics_of_all_workers(arena: Arena, supervised: Supervised) -> None:
    until(lambda: supervised.get("/readyz") == '{"ready": true, "reasons": []}\n', 30, "all are ready")
    arena.send(image_requests(40))
    arena.wait_answered(60)

    def results() -> dict[str, float]:
        """Number of results that each worker has published."""
        return {
            sample.labels["device"]: sample.value
            for family in text_string_to_metric_families(supervised.get("/metrics"))
            for sample in family.samples
            if sample.name == "zimage_results_total"
        }

    until(lambda: sum(results().values()) == 40, 20, "all are counted")
    assert results().keys() == {"cpu:0", "cpu:1"}
    os.kill(supervised.started()[0], signal.SIGKILL)
    until(
        lambda: "cpu:0: the worker is not running" in supervised.get("/readyz"), 20, "its death is reported"
    )
    assert 'zimage_worker_up{device="cpu:1"} 1.0' in supervised.get("/metrics")
    until(lambda: '"ready": true' in supervised.get("/readyz"), 40, "it is back")


def test_a_crash_loop_is_reported_with_the_last_lines(arena: Arena, tmp_path: Path) -> None:
    with Supervised(arena, tmp_path / "supervisor.log", {"ZIMAGE_STORE__BUCKET": "nowhere"}) as running:
        until(lambda: "is in a crash loop" in running.words(), 60, "the verdict")
        verdict = next(line for line in running.words().splitlines() if "is in a crash loop" in line)
        assert "there is no bucket 'nowhere'" in verdict
        until(lambda: "it died 4 times within 300 s" in running.get("/readyz"), 20, "its health reports it")
        assert running.stop() in (0, 1)


def test_a_worker_that_leaks_is_replaced_and_no_request_is_charged(arena: Arena, tmp_path: Path) -> None:
    leaking = {
        "ZIMAGE_ENGINE__SIMULATED_FAULTS": '{"picture": "leak:100"}',
        "ZIMAGE_ENGINE__LEAK_LIMIT_BYTES": str(1 << 30),
        "ZIMAGE_ENGINE__MAX_BATCH": "1",
    }
    with Supervised(arena, tmp_path / "supervisor.log", leaking) as running:
        running.wait_with_work()
        arena.send(image_requests(160))
        report = arena.wait_answered(90)
        arena.assert_exactly_once(report)
        assert report.statuses() == {"SUCCEEDED": 160}
        assert {result["attempts"] for (result,) in report.results.values()} == {1}
        replaced = running.words().count("leaked memory and is being replaced")
        # 27 batches of 100 MB are past 1 GiB in the least of the latest 16.
        assert 2 <= replaced <= 160 // 27
        assert "restarting it in" not in running.words()
        assert running.stop() == 0


def test_models_that_do_not_fit_into_memory_together_load_one_at_a_time(arena: Arena, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(CHECKPOINT, model, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    # A sparse file, larger than any memory, that takes no space on disk. The pipeline does not read it.
    with (model / "large.safetensors").open("wb") as hole:
        hole.truncate(1 << 42)
    real = {"ZIMAGE_ENGINE__KIND": "zimage", "ZIMAGE_ENGINE__MODEL": str(model)}
    with Supervised(arena, tmp_path / "supervisor.log", real) as running:
        running.wait_with_work()
        events = [
            "started" if "started, process" in line else "loaded"
            for line in running.words().splitlines()
            if "started, process" in line or "loaded on cpu in" in line
        ]
        assert events == ["started", "loaded"] * 2
        arena.send([PromptRequest(prompt="a red circle", width=64, height=64, steps=2)])
        assert arena.wait_answered(60).statuses() == {"SUCCEEDED": 1}
        assert running.stop() == 0


def test_workers_end_when_their_supervisor_is_killed(supervised: Supervised) -> None:
    supervised.process.kill()
    until(lambda: not any(alive(pid) for pid in supervised.started()), 40, "the workers have ended")


def test_a_record_that_hangs_every_worker_that_decodes_it_ends_as_a_dead_letter(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress, tmp_path: Path
) -> None:
    # One partition, so that all other requests are behind it.
    arena = make_arena(kafka, minio, partitions=1, worker={"max_attempts": 1})
    (bad, *others) = [PromptRequest(prompt=prompt) for prompt in ("hang", "before", "between", "after")]
    arena.send([others[0], bad, *others[1:]])
    with Supervised(arena, tmp_path / "supervisor.log", None, 1, "tests.fleet.hanging") as running:
        report = arena.wait_answered(180)
        words = running.words()
        # Two before any mark, one under the record's own mark, and one when its author is to be answered.
        # On an overloaded machine, a healthy worker that is silent for as long is killed as well.
        kills = words.count("ignores SIGTERM; killing it")
        assert kills >= 4
        until(lambda: len(running.started()) == 1 + kills, 60, "each kill is followed by one start")
        assert running.stop() == 0
    ((letter,),) = report.dead.values()
    assert letter["zimage.code"] == "WORKER_CRASHED"
    assert report.statuses() == {"SUCCEEDED": 3}
