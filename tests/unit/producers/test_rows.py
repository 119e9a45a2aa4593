from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_producers.produce.rows import (
    InputError,
    Row,
    batch_name,
    encoding_of,
    format_of,
    id_prefix,
    read_rows,
    request_of,
)
from zimage_stream import RequestError
from zimage_stream.events.rules import NAME, check_request


def rows_of(text: str, kind: str = "csv", encoding: str = "utf-8-sig") -> list[Row]:
    return list(read_rows(io.BytesIO(text.encode(encoding)), kind, encoding))  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_file_is_read_in_the_encoding_it_was_saved_in(tmp_path: Path, written: str) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,城市\n雾中的灯塔,上海\n", encoding=written)
    encoding = encoding_of(file)
    assert encoding == ("gb18030" if written == "gb18030" else "utf-8-sig")
    with file.open("rb") as opened:
        (row,) = read_rows(opened, "csv", encoding)
    request = request_of(row, "cities", {})
    assert request.prompt == "雾中的灯塔"
    assert request.attributes == {"城市": "上海"}


def test_what_is_neither_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_bytes(b"prompt\n\xff\xff\xff\n")
    with pytest.raises(InputError, match="neither UTF-8 nor GB18030"):
        encoding_of(file)


def test_cells_become_fields_and_other_columns_attributes() -> None:
    (row,) = rows_of(
        "prompt,width,seed,guidance_scale,expires_at,colour,note\na heron,512,,0.0,2030-01-31T12:00:00,red,\n"
    )
    request = request_of(row, "b", {"height": 256, "tenant": "studio", "attributes": {"run": "7"}})
    assert (request.width, request.height, request.seed, request.tenant) == (512, 256, None, "studio")
    assert request.expires_at == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert request.attributes == {"run": "7", "colour": "red"}
    assert (request.request_id, request.batch_id) == ("b-1", "b")


def test_a_row_keeps_the_id_it_has() -> None:
    (row,) = rows_of('{"prompt": "x", "request_id": "mine", "attributes": {"k": "v"}, "n": 3}\n', "jsonl")
    request = request_of(row, "b", {})
    assert request.request_id == "mine"
    assert request.attributes == {"k": "v", "n": "3"}


def test_lines_are_counted_as_an_editor_counts_them() -> None:
    text = 'prompt\n"two\nlines"\n\na heron\n'
    assert [(row.line, row.number) for row in rows_of(text)] == [(2, 1), (5, 2)]
    separators = '{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\r\n'
    assert [(row.line, row.number) for row in rows_of(separators, "jsonl")] == [(1, 1), (3, 2)]


def test_a_broken_line_is_told_and_the_others_go_on() -> None:
    read = rows_of('{"prompt": "a"}\n{broken\n[1]\n{"prompt": "b"}\n', "jsonl")
    assert [row.problem is None for row in read] == [True, False, False, True]
    assert [row.line for row in read] == [1, 2, 3, 4]
    read = rows_of("prompt,width\na,64,spare\nb,64\n")
    assert [row.problem for row in read] == ["it has 3 cells, and there are 2 columns", None]
    read = rows_of("prompt\n" + "x" * 200_000 + "\nb\n")
    assert read[0].problem is not None
    assert read[1].values == {"prompt": "b"}


@pytest.mark.parametrize("text", ["", "text,width\n", "prompt,prompt\n"])
def test_a_header_without_a_prompt_is_wrong_use(text: str) -> None:
    with pytest.raises(InputError):
        rows_of(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", "wide"),
        ("seed", "1.5"),
        ("guidance_scale", "much"),
        ("expires_at", "tomorrow"),
        ("attributes", "{"),
        ("attributes", "[]"),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_field(name: str, value: str) -> None:
    with pytest.raises(RequestError) as caught:
        request_of(Row(1, 1, {"prompt": "a", name: value}), "b", {})
    assert caught.value.field == name


def test_a_time_keeps_its_zone() -> None:
    request = request_of(Row(1, 1, {"prompt": "a", "expires_at": "2030-01-31T12:00:00+08:00"}), "b", {})
    assert request.expires_at == datetime(2030, 1, 31, 12, tzinfo=timezone(timedelta(hours=8)))


@given(batch=st.text(min_size=1, max_size=128))
def test_every_batch_gives_ids_that_pass(batch: str) -> None:
    assert NAME.fullmatch(f"{id_prefix(batch)}-1000000")


@given(one=st.text(min_size=1, max_size=20), other=st.text(min_size=1, max_size=20))
def test_two_batches_share_no_ids(one: str, other: str) -> None:
    assert (id_prefix(one) == id_prefix(other)) == (one == other)


@given(stem=st.from_regex(r"[^/\x00]{1,80}", fullmatch=True))
def test_a_batch_named_after_a_file_passes(stem: str) -> None:
    name = batch_name(Path(stem + ".csv"), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert name.endswith("-20260102-030405")
    check_request(request_of(Row(1, 1, {"prompt": "a"}), name, {}))


@given(data=st.binary(max_size=300))
def test_whatever_the_bytes_there_are_rows_or_a_clear_error(data: bytes) -> None:
    for kind in ("csv", "jsonl"):
        for encoding in ("utf-8-sig", "gb18030"):
            try:
                for row in read_rows(io.BytesIO(b"prompt\n" + data), kind, encoding):
                    if row.problem is None:
                        request_of(row, "b", {})
            except (InputError, RequestError):
                pass


@pytest.mark.parametrize(
    ("path", "asked", "kind"),
    [
        (None, None, "jsonl"),
        (None, "csv", "csv"),
        (Path("a.CSV"), None, "csv"),
        (Path("a.ndjson"), None, "jsonl"),
        (Path("a.csv"), "jsonl", "jsonl"),
    ],
)
def test_the_format_is_asked_for_or_named(path: Path | None, asked: str | None, kind: str) -> None:
    assert format_of(path, asked) == kind  # type: ignore[arg-type]


def test_a_name_that_says_nothing_is_wrong_use() -> None:
    with pytest.raises(InputError, match="--input-format"):
        format_of(Path("prompts.txt"), None)
