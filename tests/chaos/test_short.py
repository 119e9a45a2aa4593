"""The short form of the fault suite: scenarios with a mechanism of their own, on a broker and a store of
their own.

The long form, and all other scenarios, are ``make chaos``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import SCENARIOS, play
from tests.chaos.stage import Services

SHORT = [name for name, scenario in SCENARIOS.items() if scenario.short]
SEED = 1


@pytest.mark.parametrize("scenario", SHORT)
def test_exactly_once_under(scenario: str, own_services: Services, tmp_path: Path) -> None:
    row = play(own_services, scenario, "steady", tmp_path, SEED)
    assert row.problems == {}
    assert row.accepted > 100
    assert row.faults > 0
