"""What ``zimage cancel`` reads from a file and prints; which requests it and ``zimage status`` look for."""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from zimage_stream import ImageResult, PromptRequest, Source, Status
from zimage_stream.cli.cancel import Outcome, Report, read_ids
from zimage_stream.cli.status.where import Wanted
from zimage_stream.events.codec import Codec

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def request(request_id: str = "r", tenant: str = "shop", batch_id: str | None = None) -> PromptRequest:
    return PromptRequest(prompt="a", request_id=request_id, tenant=tenant, batch_id=batch_id)


@pytest.mark.parametrize(
    ("wanted", "includes"),
    [
        (Wanted(frozenset("r")), True),
        (Wanted(frozenset("qr"), tenant="shop"), True),
        (Wanted(frozenset("r"), tenant="other"), False),
        (Wanted(frozenset("q")), False),
        (Wanted(batch="spring"), True),
        (Wanted(batch="spring", tenant="shop"), True),
        (Wanted(batch="spring", tenant="other"), False),
        (Wanted(batch="summer"), False),
        (Wanted(frozenset()), False),
    ],
)
def test_requests_and_results_are_chosen_by_id_batch_and_tenant(wanted: Wanted, includes: bool) -> None:
    result = ImageResult(
        request_id="r",
        tenant="shop",
        batch_id="spring",
        status=Status.CANCELLED,
        source=Source(topic="t", partition=0, offset=0),
        requested_at=NOW,
        completed_at=NOW,
    )
    assert wanted.includes(request(batch_id="spring")) is includes
    assert wanted.includes(result) is includes


names = st.sampled_from([f"r{number}" for number in range(12)])


@given(
    asked=st.builds(request, names, st.just("shop"), st.none() | names),
    wanted=st.builds(Wanted, st.frozensets(names)) | st.builds(Wanted, batch=names),
)
def test_no_wanted_event_fails_the_cheap_test(asked: PromptRequest, wanted: Wanted) -> None:
    value = Codec().encode_request(asked, "t")
    assert wanted.cheap_test()(value) or not wanted.includes(asked)


def test_the_cheap_test_drops_what_it_can() -> None:
    value = Codec().encode_request(request(), "t")
    assert not Wanted(frozenset("q")).cheap_test()(value)
    assert not Wanted(batch="q").cheap_test()(value)


def test_ids_are_lines_or_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_bytes(b'\xef\xbb\xbfa\r\n\r\n  b  \n{"request_id": "c", "line": 3}\na\n')
    assert read_ids(str(file)) == ["a", "b", "c"]


def test_ids_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))
    assert read_ids("-") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a\nb c\n", "line 2: request_id: got 'b c', takes 1 to 128 of"),
        (b"prompt,sku\n", "line 1: request_id: got 'prompt,sku', takes 1 to 128 of"),
        (b"\xff\xfea\x00", "line 1: request_id: got"),
        (b'{"id": "a"}', "line 1: request_id: got None, takes 1 to 128 of"),
        (b'{"request_id": 7}', "line 1: request_id: got 7, takes 1 to 128 of"),
        (b'{"request_id": "a"', "line 1: it is not JSON"),
        (b" \n", "it is empty, takes one id per line"),
    ],
)
def test_a_wrong_file_is_told_by_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "ids"
    file.write_bytes(content)
    with pytest.raises(typer.BadParameter) as refused:
        read_ids(str(file))
    assert str(refused.value).startswith(f"{file}: {says}")
    assert refused.value.param_hint == "--file"


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (Report("r", Outcome.CANCELLED, status=Status.CANCELLED), "r: cancelled"),
        (Report("r", Outcome.ENDED_BEFORE, status=Status.EXPIRED), "r: ended before as EXPIRED"),
        (Report("r", Outcome.NOT_FOUND), "r: not found"),
        (Report("r", Outcome.ASKED), "r: asked, not ended yet"),
    ],
)
def test_each_outcome_is_one_line(report: Report, line: str) -> None:
    assert str(report) == line
