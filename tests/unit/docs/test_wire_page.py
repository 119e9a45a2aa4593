"""The page on the wire format agrees with the schemas, the topics and the codes."""

from __future__ import annotations

import pytest

from tools.render_wire import PAGE, rendered
from zimage_stream.events.image_result import Code


def test_its_tables_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert rendered(page) == page, "run: python -m tools.render_wire"


@pytest.mark.parametrize("code", Code)
def test_every_code_is_explained(code: Code) -> None:
    assert f"\n| {code} |" in PAGE.read_text(encoding="utf-8").split("## Codes")[1]
