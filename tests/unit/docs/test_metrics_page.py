from __future__ import annotations

from tools.render_metrics import PAGE, rendered


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == rendered(), "run: python -m tools.render_metrics"
