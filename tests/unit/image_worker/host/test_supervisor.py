"""Which devices are selected, and when a dead worker is restarted."""

from __future__ import annotations

import pytest

from zimage_consumers.image_worker.host.supervisor import (
    LOOP_S,
    describe,
    devices_of,
    is_crash_loop,
    wait_before_restart,
)
from zimage_stream.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "gpus", "visible"),
    [("all", 4, ["0", "1", "2", "3"]), ("0,2", 4, ["0", "2"]), ("2,0,2", 4, ["0", "2"]), ("1", 2, ["1"])],
)
def test_a_worker_sees_one_gpu_and_no_other(text: str, gpus: int, visible: list[str]) -> None:
    devices = devices_of(text, gpus)
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in devices] == visible
    assert {device.environment["ZIMAGE_ENGINE__DEVICE"] for device in devices} == {"cuda"}


def test_without_a_gpu_any_number_of_workers_may_run() -> None:
    assert [device.index for device in devices_of("cpu:3", 0)] == [0, 1, 2]
    assert [device.environment["ZIMAGE_ENGINE__DEVICE"] for device in devices_of("cpu", 8)] == ["cpu"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("all", "there is no GPU here; --devices cpu runs without one"),
        ("0,3", "there are 0 GPUs here"),
        ("cpu:0", "takes all, a list of GPUs such as 0,2, cpu or cpu:2"),
        ("gpu", "takes all, a list of GPUs"),
        ("", "takes all, a list of GPUs"),
    ],
)
def test_a_device_that_does_not_exist_is_named(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        devices_of(text, 0)


def test_waits_grow_and_are_bounded() -> None:
    waits = [wait_before_restart(deaths) for deaths in range(1, 12)]
    assert waits[:3] == [0.5, 1.0, 2.0]
    assert waits[-1] == 60.0


def test_many_deaths_in_a_short_time_are_a_crash_loop() -> None:
    assert not is_crash_loop([])
    assert not is_crash_loop([0.0, 1.0, 2.0])
    assert is_crash_loop([0.0, 1.0, 2.0, LOOP_S])
    assert not is_crash_loop([0.0, 1.0, 2.0, LOOP_S + 1])


def test_an_exit_code_is_described_in_words() -> None:
    assert describe(-9) == "killed by SIGKILL"
    assert describe(71) == "exit code 71, context lost"
    assert describe(3) == "exit code 3"
