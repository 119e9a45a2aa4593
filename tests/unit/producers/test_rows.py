from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_producers.produce.json_lines import read_json_lines
from zimage_producers.produce.rows import Row, batch_name, id_prefix, request_of
from zimage_producers.produce.table import read_table
from zimage_stream import RequestError
from zimage_stream.events.rules import NAME, check_request


def rows_of(text: str, kind: str = "csv") -> list[Row]:
    lines = text.splitlines(keepends=True)
    return list(read_table(lines).rows if kind == "csv" else read_json_lines(lines))


def test_cells_become_fields_and_other_columns_attributes() -> None:
    (row,) = rows_of(
        "prompt,width,seed,guidance_scale,expires_at,colour,note\na heron,512,,0.0,2030-01-31T12:00:00,red,\n"
    )
    request = request_of(row, "b", "r", {"height": 256, "tenant": "studio", "attributes": {"run": "7"}})
    assert (request.width, request.height, request.seed, request.tenant) == (512, 256, None, "studio")
    assert request.expires_at == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert request.attributes == {"run": "7", "colour": "red"}
    assert (request.request_id, request.batch_id) == ("r", "b")


def test_a_column_asks_for_previews_and_an_empty_cell_for_what_the_option_says() -> None:
    asked, unset = rows_of("prompt,previews\na heron,2\na crane,\n")
    assert request_of(asked, "b", "r", {"previews": 1}).previews == 2
    assert request_of(unset, "b", "r", {"previews": 1}).previews == 1
    assert request_of(unset, "b", "r", {}).previews == 0


def test_a_row_with_an_id_keeps_it() -> None:
    (row,) = rows_of('{"prompt": "x", "request_id": "mine", "attributes": {"k": "v"}, "n": 3}\n', "jsonl")
    request = request_of(row, "b", "r", {})
    assert request.request_id == "mine"
    assert request.attributes == {"k": "v", "n": "3"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", "wide"),
        ("seed", "1.5"),
        ("previews", "some"),
        ("seed", "1_000"),
        ("seed", "1,024"),
        ("seed", "1.23457E+15"),
        ("seed", "9223372036854775807.0"),
        ("seed", "9" * 5_000),
        ("seed", 9.96815477133720859e17),
        ("expires_at", "47514.5"),
        ("sku", ["a", "b"]),
        ("attributes", {"sku": {"a": 1}}),
        ("guidance_scale", "much"),
        ("expires_at", "tomorrow"),
        ("attributes", "{"),
        ("attributes", "[]"),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        request_of(Row(1, 1, {"prompt": "a", name: value}), "b", "r", {})
    assert caught.value.field.startswith(name)


@pytest.mark.parametrize("value", ["64.0", " 64 ", "64.", "+64", 64.0, Decimal("64.0"), Decimal("6.4e1")])
def test_a_whole_number_may_be_written_as_pandas_writes_it(value: Any) -> None:
    width = request_of(Row(1, 1, {"prompt": "a", "width": value}), "b", "r", {}).width
    assert (width, type(width)) == (64, int)


def test_numbers_are_read_as_ids_and_attributes_with_all_their_digits() -> None:
    (row,) = rows_of(
        '{"prompt": "a", "request_id": 12345, "tenant": 7, "price": 1.10, "ok": true}\n', "jsonl"
    )
    request = request_of(row, "b", "r", {})
    assert (request.request_id, request.tenant) == ("12345", "7")
    assert request.attributes == {"price": "1.10", "ok": "true"}


def test_a_time_keeps_its_zone() -> None:
    request = request_of(Row(1, 1, {"prompt": "a", "expires_at": "2030-01-31T12:00:00+08:00"}), "b", "r", {})
    assert request.expires_at == datetime(2030, 1, 31, 12, tzinfo=timezone(timedelta(hours=8)))


@given(batch=st.text(min_size=1, max_size=128))
def test_every_batch_name_gives_valid_ids(batch: str) -> None:
    assert NAME.fullmatch(f"{id_prefix(batch)}-1000000")


@given(one=st.text(min_size=1, max_size=20), other=st.text(min_size=1, max_size=20))
def test_ids_of_two_batches_do_not_overlap(one: str, other: str) -> None:
    assert (id_prefix(one) == id_prefix(other)) == (one == other)


@given(stem=st.from_regex(r"[^/\x00]{1,80}", fullmatch=True))
def test_a_batch_named_after_a_file_is_valid(stem: str) -> None:
    name = batch_name(Path(stem + ".csv"), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert name.endswith("-20260102-030405")
    check_request(request_of(Row(1, 1, {"prompt": "a"}), name, f"{id_prefix(name)}-1", {}))
