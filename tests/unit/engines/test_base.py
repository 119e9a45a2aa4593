"""The interface of engines: one that was written before steps could be reported goes on working."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from zimage_stream.engines.base import Engine, ImageSpec, never, reports_steps
from zimage_stream.engines.simulated import SimulatedEngine


class Older(SimulatedEngine):
    """Knows nothing of steps."""

    def generate(self, specs: Sequence[ImageSpec], cancelled: Callable[[], bool] = never) -> Any:  # type: ignore[override]
        """Generate images."""
        return super().generate(specs, cancelled)


class Unreadable:
    """Its ``generate`` has no signature."""

    generate = dict.fromkeys


@pytest.mark.parametrize(
    ("engine", "reports"), [(SimulatedEngine(), True), (Older(), False), (Unreadable(), False)]
)
def test_whether_an_engine_reports_steps_is_known_by_its_arguments(engine: object, reports: bool) -> None:
    assert reports_steps(cast(Engine, engine)) is reports
