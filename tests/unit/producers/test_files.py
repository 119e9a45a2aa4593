"""Files as people have them: read as expected, or refused with the line and the remedy."""

# ruff: noqa: E501
from __future__ import annotations

import io
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_producers.produce.encoding import text_lines
from zimage_producers.produce.json_lines import read_json_lines
from zimage_producers.produce.reading import format_of, open_rows
from zimage_producers.produce.rows import InputError, request_of
from zimage_producers.produce.table import read_table
from zimage_stream import PromptRequest, RequestError
from zimage_stream.events.rules import check_request

HEART = {"prompt": "a red heart", "width": 64, "height": 64}
STAR = {"prompt": "a blue star", "width": 64, "height": 64}
HEAD = b"prompt,width,height\n"
CHINESE = "红色的心,64,64\n蓝色的星星,64,64\n".encode("gb18030")


def read(path: Path, **more: Any) -> tuple[str, list[PromptRequest | str]]:
    """How a file is read, and for each row its request, or its line and problem."""
    with ExitStack() as stack:
        reading = open_rows(stack, path, **more)
        return reading.described, [_request(row) for row in reading.rows]


def _request(row: Any) -> PromptRequest | str:
    try:
        return f"{row.line}: {row.problem}" if row.problem else check_request(request_of(row, "b", "r", {}))
    except RequestError as error:
        return f"{row.line}: {error}"


def json(*lines: str) -> bytes:
    return "".join(f'{{"width": 64, "height": 64, {line}}}\n' for line in lines).encode()


# Name, bytes, how the file is read, and its rows: fields of a request, or a pattern for the message.
READ = [
    ("apostrophe.csv", HEAD + b"\"'+' sign\",64,64\n'-ish,64,64\n=1+1,64,64\n", "CSV in UTF-8, columns sep",
     [{"prompt": "'+' sign"}, {"prompt": "'-ish"}, {"prompt": "=1+1"}]),
    ("blank_first_line.csv", b"\n" + HEAD + b"a red heart,64,64\n", "commas", [HEART]),
    ("commas_only_line.csv", HEAD + b"a red heart,64,64\n,,\n,,,,,\na blue star,64,64\n", "commas", [HEART, STAR]),
    ("trailing_empty_columns.csv", b"prompt,width,height,,\na red heart,64,64,,\n", "commas", [HEART]),
    ("inner_column_without_name.csv", b"prompt,,width,height\na red heart,,64,64\nb,x,64,64\n", "commas",
     [HEART, "3: column 2 has no name, but contains 'x'"]),
    ("cr_only.csv", b"prompt,width,height\ra red heart,64,64\ra blue star,64,64\r", "commas", [HEART, STAR]),
    ("ctrl_z.csv", HEAD + b"a red heart,64,64\n\x1a", "commas", [HEART]),
    ("ctrl_z_behind_a_cell.csv", HEAD + b"a red heart,64,64\x1a\r\n", "commas", [HEART]),
    ("double_bom.csv", b"\xef\xbb\xbf\xef\xbb\xbf" + HEAD + b"a red heart,64,64\n", "UTF-8", [HEART]),
    ("spaces.csv", b'prompt, width, height\n"a red heart", 64, 64\n', "commas", [HEART]),
    ("semicolon.csv", b"prompt;width;height\na red heart, on white;64;64\n", "columns separated by semicolons",
     [{**HEART, "prompt": "a red heart, on white"}]),
    ("semicolon_unquoted_commas_in_header.csv", b"prompt;size, in pixels\na red heart;64\n", "semicolons",
     [{"prompt": "a red heart", "attributes": {"size, in pixels": "64"}}]),
    ("sep_line.csv", b"sep=;\nprompt;width\na red heart;64\n", "separated by semicolons, as specified in line 1",
     [{"prompt": "a red heart", "width": 64}]),
    ("sep_comma_line.csv", b"sep=,\r\nprompt,width\r\na red heart,64\r\n", "separated by commas, as specified in line 1",
     [{"width": 64}]),
    ("tab.tsv", b"prompt\twidth\na red heart\t64\n", "columns separated by tabs", [{"width": 64}]),
    ("utf16.csv", "\ufeffprompt,width\n红心,64\n".encode("utf-16-le"), r"UTF-16 \(by its byte order mark\), .* commas",
     [{"prompt": "红心", "width": 64}]),
    ("utf16_tab.txt", "\ufeffprompt\twidth\n红心\t64\n".encode("utf-16-be"), r"UTF-16 \(by its byte order mark\), .* tabs",
     [{"prompt": "红心", "width": 64}]),
    ("utf16.jsonl", "\ufeff{\"prompt\": \"红心\"}\r\n".encode("utf-16-le"), r"JSONL in UTF-16 \(by its byte order mark\)",
     [{"prompt": "红心"}]),
    ("gb18030.csv", HEAD + CHINESE, r"CSV in GB18030 \(it is not UTF-8, and reads as Chinese\)",
     [{"prompt": "红色的心"}, {"prompt": "蓝色的星星"}]),
    ("quoted_newlines.csv",
     HEAD + b'"a red heart\r\non a white background, ""framed""",64,64\r\n"a blue\nstar",64,64\r\n', "commas",
     [{"prompt": 'a red heart\r\non a white background, "framed"'}, {"prompt": "a blue\nstar"}]),
    ("unclosed_quote.csv", HEAD + b'a red heart,64,64\n"a blue star,64,64\nb,64,64\nc,64,64\n', "commas",
     [HEART, "^3: the quote that opens in line 3, column 1 is never closed; it contains lines 3 to 5, which were not"]),
    ("unclosed_quote_smart.csv", HEAD + '"a blue star”,64,64\n'.encode() + b"c,64,64\n" * 20_000, "commas",
     ["^2: the quote that opens in line 2, column 1 is never closed; it contains lines 2 to 16,3[0-9]+, ", *[{}] * 3_618]),
    ("unclosed_quote_closed_by_another.csv", HEAD + b'"a blue star,64,64\na 12",64,64\na red heart,64,64\n', "commas",
     ["^2: column 'prompt' contains 'a blue star,.*looks like several rows: is there an unclosed quote in line 2", HEART]),
    ("unclosed_quote_before_a_quoted_row.csv", HEAD + b'"a blue star,64,64\n"a, b",64,64\na red heart,64,64\n',
     "commas", ["^2: the quote that opens in line 2, column 1 is followed by text where it closes in line 3; it contains lines 2",
                HEART]),
    ("unclosed_quote_without_kinds.csv", b'prompt,sku\n"a,1\nb,2\nc",3\n', "commas", ["^2: .*like several rows"]),
    ("inner_quotes.csv", HEAD + b'"Vintage" poster,64,64\na 12" red heart,64,64\n', "commas",
     ["^2: the quote that opens in line 2, column 1 is followed by text .* double a quote within a cell: \"\"", {"prompt": 'a 12" red heart'}]),
    ("too_many_cells.csv", b"prompt,width\na,64,spare\nb,64\n", "commas",
     ["^2: it has 3 cells, but there are 2 columns; .* quotes", {"prompt": "b"}]),
    ("too_long.csv", b"prompt\n" + b"x" * 200_000 + b"\nb\n", "commas", ["^2: it is not CSV: .*limit", {"prompt": "b"}]),
    ("pandas_floats.csv", b"prompt,width,height,seed\na red heart,64.0,64.0,7.0\na blue star,64.0,64.0,\n", "commas",
     [{**HEART, "seed": 7}, {**STAR, "seed": None}]),
    ("excel_sci_seed.csv", b"prompt,seed\na,1.23457E+12\nb,1.25\n", "commas",
     [r"^2: seed: got '1\.23457E\+12', takes a whole number with all its digits; this one lost some",
      r"^3: seed: got '1\.25', takes a whole number$"]),
    ("a1111_seed.csv", b"prompt,seed\na,-1\n", "commas", ["^2: seed: got -1, .* omit it to have it derived from"]),
    ("comfy_seed.csv", b"prompt,seed\na,9968154771337208591\nb,1125899906842624\n", "commas",
     ["^2: seed: got 9968154771337208591, takes a whole number from 0 to 9223", {"seed": 1125899906842624}]),
    ("excel_dates.csv", b"prompt,expires_at\na,47514.5\nb,31/01/2030 12:00\nc,2030-01-31\n", "commas",
     [r"^2: expires_at: got '47514\.5', takes .*; this is an Excel date number", "^3: expires_at: got '31/01",
      {"prompt": "c"}]),
    ("numbers.jsonl", json('"prompt": "a", "request_id": 12345', '"prompt": 42', '"prompt": "b", "tenant": 7'), "",
     [{"request_id": "12345"}, "^2: prompt: got 42, takes text", {"tenant": "7"}]),
    ("pandas_floats.jsonl", b'{"prompt": "a", "width": 64.0, "seed": null}\n', "", [{"width": 64, "seed": None}]),
    ("nan.jsonl", json('"prompt": "a", "seed": NaN', '"prompt": "a", "price": -Infinity'), "",
     ["^1: NaN is not a JSON number: write null", "^2: -Infinity is not a JSON number"]),
    ("huge_int.jsonl", json('"prompt": "a", "seed": ' + "9" * 5_000, '"prompt": "a", "n": 1e999999999'), "",
     ["^1: the number 99999999… has 5,000 digits; at most", "^2: the number '1e999999999' is out of range"]),
    ("numbers_out_of_bounds.jsonl", json('"prompt": "a", "n": 1e99999999999999999999', '"prompt": "a", "seed": 1.23457e+12'), "",
     ["^1: the number '1e99999999999999999999' is out of range",
      r"^2: seed: got '1\.23457E\+12', takes a whole number with all its digits; this one lost some"]),
    ("json_in_a_cell.tsv",
     b"prompt\tattributes\na\t{'sku': 1}\nb\t{\"sku\": NaN}\nc\t{\"sku\": 1, \"sku\": 2}\nd\t" + b"[" * 100_000
     + b"\ne\t{\"sku\": 1.10}\n", "tabs",
     ["^2: attributes: got .*it is not JSON: .* in column 2", "^3: attributes: .*NaN is not a JSON number",
      "^4: attributes: .*the key 'sku' occurs twice", "^5: attributes: .*nested too deeply", {"attributes": {"sku": "1.10"}}]),
    ("duplicate_keys.jsonl", json('"prompt": "a", "prompt": "b"'), "", ["^1: the key 'prompt' occurs twice"]),
    ("surrogate.jsonl", json(r'"prompt": "a \ud83d"', r'"prompt": "b \ud83d\ude00"'), "",
     [r"^1: prompt: .* takes text without lone surrogates \(it contains U\+D83D\)", {"prompt": "b 😀"}]),
    ("nested.jsonl", json('"prompt": "a", "attributes": {"sku": 1, "ok": true}', '"prompt": "a", "tags": ["a"]'), "",
     [{"attributes": {"sku": "1", "ok": "true"}}, r"^2: tags: got \['a'\], takes a text or a number"]),
    ("near_miss.jsonl", json('"prompt": "a", "Seed": 5', '"prompt": "b"'), "",
     ["^1: 'Seed' is not a field: write seed", {"prompt": "b"}]),
    ("broken.jsonl", b'{"prompt": "a"}\n{broken\n[1]\n\n{"prompt": "a\xe2\x80\xa8b"}\r\n', "",
     [{"prompt": "a"}, "^2: it is not JSON: .* in column 2", r"^3: it is not a JSON object: \[1\]", {"prompt": "a\u2028b"}]),
    ("invisible.jsonl", json(r'"prompt": "\u200b"', r'"prompt": "\u3164"', r'"prompt": "\ufeffa"'), "",
     ["^1: prompt: got .* visible", "^2: prompt: got .* visible", {"prompt": "\ufeffa"}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "described", "rows"), READ, ids=[case[0] for case in READ])
def test_a_file_is_read_as_a_person_would_expect(
    tmp_path: Path, name: str, data: bytes, described: str, rows: list[dict[str, Any] | str]
) -> None:
    (tmp_path / name).write_bytes(data)
    how, got = read(tmp_path / name)
    assert re.search(described, how)
    assert len(got) == len(rows)
    for one, wanted in zip(got, rows, strict=True):
        if isinstance(wanted, str):
            assert isinstance(one, str), one
            assert re.search(wanted, one), one
        else:
            assert isinstance(one, PromptRequest), one
            assert {field: getattr(one, field) for field in wanted} == wanted


# Name, bytes, and a pattern for the message before anything is sent.
REFUSED = [
    ("latin1_french.csv", HEAD + "un éléphant rouge,64,64\nun château,64,64\n".encode("cp1252"),
     "line 2, column 4: byte 0xE9 is not UTF-8, .*would be 'un 閘閜hant.* --encoding cp1252"),
    ("latin1_german.csv", HEAD + "ein grüner Käfer,64,64\n".encode("cp1252"), "line 2, column 7: byte 0xFC .*--enc"),
    ("latin1_eszett.csv", HEAD + "die Größe\n".encode("cp1252"), "line 2, column 7: byte 0xF6 .*--encoding"),
    ("latin1_space.csv", HEAD + "café au lait,64,64\n".encode("cp1252"), "line 2, column 4: byte 0xE9 .*--encoding"),
    ("cp1251.csv", HEAD + "красный шар,64,64\nсиняя звезда,64,64\n".encode("cp1251"), "line 2, .* --encoding"),
    ("big5.csv", HEAD + "紅色的愛心,64,64\n".encode("big5"), "line 2, column 1: byte 0xAC .* --encoding cp1252, big5"),
    ("shift_jis.csv", HEAD + "赤いハート,64,64\n".encode("shift_jis"), "line 2, column 1: byte 0x90 .* --encoding"),
    ("euc_jp.csv", HEAD + "赤いハートの絵,64,64\n".encode("euc_jp"), "line 2, column 1: byte 0xC0 .* --encoding"),
    ("euc_kr.csv", HEAD + "빨간 하트,64,64\n파란 별,64,64\n".encode("euc_kr"), "line 2, .* Korean .* --encoding"),
    ("utf8_latin1_row.csv", HEAD + "红色的心,64,64\n".encode() + b"un \xe9l\xe9phant,64,64\n",
     "line 3, column 4: byte 0xE9 is not UTF-8, but earlier lines are UTF-8: the file mixes two encodings; fix that line"),
    ("utf8_one_bad_byte.csv", "prompt\n红色的心\n蓝色星星\n".encode() + b"a cross \xa1\xa1\n",
     "line 4, column 9: byte 0xA1 is not UTF-8, but earlier lines"),
    ("gb18030_latin1_row.csv", HEAD + CHINESE * 50 + b"un \xe9l\xe9phant,64,64\n", "line 102 would be 'un 閘閜hant"),
    ("gb18030_utf8_row.csv", HEAD + CHINESE * 50 + "café noir,64,64\n".encode(), "line 102 reads as UTF-8"),
    ("utf16_without_mark.csv", "prompt\nred\n".encode("utf-16-le"), "byte 2 is 0, .* --encoding utf-16-le or"),
    ("capital_header.csv", b"Prompt,Width\na,64\n", "line 1: the column 'Prompt' is not a field: write prompt"),
    ("capital_width.csv", b"prompt,Width\na,64\n", "line 1: the column 'Width' is not a field: write width, or rename"),
    ("plural.csv", b"prompt,seeds\na,64\n", "the column 'seeds' is not a field: write seed"),
    ("spaced.csv", b"prompt,guidance scale\na,0\n", "'guidance scale' is not a field: write guidance_scale"),
    ("full_width.csv", "prompt,ｗｉｄｔｈ\na,64\n".encode(), "'ｗｉｄｔｈ' is not a field: write width"),
    ("bom_inside.csv", "prompt,\ufeffwidth\na,64\n".encode(), r"'\\ufeffwidth' is not a field: write width"),
    ("twice.csv", b"prompt,sku,sku\na,1,2\n", "line 1: the column 'sku' occurs twice"),
    ("no_prompt.csv", b"\ntext,width\na,64\n", "line 2 must name the columns, including prompt; it is .*'text'"),
    ("two_dialects.csv", b"prompt;a,prompt\nx,y\n", "can be separated by commas or semicolons: insert a line sep=;"),
    ("empty.csv", b"", "it is empty: the first line must name the columns"),
    ("broken_header.csv", b'prompt,"width\na,64\n', "the column names: the quote that opens in line 1, column 8 is"),
    ("array.json", b'[{"prompt": "a"},\n {"prompt": "b"}]\n', "line 1: it begins an array, .* jq -c"),
    ("pretty.json", b'{\n  "prompt": "a"\n}\n', "line 1: it begins an object of several lines, .* jq -c"),
    ("rows_of_json.csv", b'{"prompt": "a"}\n', "line 1 must name the columns, .* --input-format jsonl"),
    ("table.jsonl", b"prompt,width\na,64\n", "line 1: 'prompt,width' is not a JSON object; .* --input-format csv"),
    ("xlsx_renamed.csv", b"PK\x03\x04\x14\0\6\0" + bytes(range(250)), "looks like an Excel workbook but cannot be"),
    ("csv_renamed.xlsx", b"prompt\na\n", "it is not an XLSX workbook; set --input-format"),
    ("old.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook, .* save it as XLSX"),
    ("rows.csv.gz", b"\x1f\x8b\x08\0", "compressed: pass it as zcat"),
    ("rows", b"prompt\na\n", "set --input-format to csv, jsonl or xlsx"),
    ("endless.csv", b"prompt\n" + b"x" * (5 << 20), "line 2 is longer than 4,194,304 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "problem"), REFUSED, ids=[case[0] for case in REFUSED])
def test_an_ambiguous_file_is_refused(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=problem):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("cp1252", "un éléphant"),
        ("big5", "紅色的愛心"),
        ("shift_jis", "赤いハート"),
        ("utf-16-le", "红心"),
        ("gbk", "鹦鹉"),
    ],
)
def test_a_given_encoding_takes_precedence(tmp_path: Path, codec: str, text: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(f"prompt\n{text}\n".encode(codec))
    how, (request,) = read(path, encoding=codec)
    assert "(as requested)" in how
    assert isinstance(request, PromptRequest)
    assert request.prompt == text


@pytest.mark.parametrize("name", ["latin-99", "rot13", "", "utf 8\0", "punycode", "idna"])
def test_an_unknown_encoding_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt\na\n")
    with pytest.raises(InputError, match=r"--encoding: got .*, takes the name of an encoding"):
        read(tmp_path / "a.csv", encoding=name)


def test_bytes_that_do_not_decode_in_the_given_encoding_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt\na\nb \xe9\n")
    with pytest.raises(InputError, match=r"^line 3, column 3: byte 0xE9 is not UTF-8$"):
        read(tmp_path / "a.csv", encoding="utf8")


@pytest.mark.parametrize("end", [b"", b"\0\xd8\n\0"])
def test_utf_16_without_a_byte_order_mark_needs_its_byte_order(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "a.csv").write_bytes("prompt\na\n".encode("utf-16-le") + end)
    with pytest.raises(InputError, match=r"^the input is not UTF-16 .*--encoding utf-16-le or utf-16-be$"):
        read(tmp_path / "a.csv", encoding="utf-16")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_the_column_to_name_files_by_must_exist(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(
        b"prompt,sku\na,1\n" if name == "a.csv" else b'{"prompt": "a", "sku": 1}\n{"prompt": "b"}\n'
    )
    assert all(isinstance(one, PromptRequest) for one in read(path, name_by="sku")[1])
    with pytest.raises(InputError, match="--name-by: line 1 has no column 'SKU'; did you mean 'sku'"):
        read(path, name_by="SKU")
    with pytest.raises(InputError, match=r"has no column 'title'; the columns are \['prompt', 'sku'\]"):
        read(path, name_by="title")


@pytest.mark.parametrize(
    ("path", "asked", "kind"),
    [
        (None, None, "jsonl"),
        (None, "csv", "csv"),
        (Path("a.CSV"), None, "csv"),
        (Path("a.tsv"), None, "csv"),
        (Path("a.ndjson"), None, "jsonl"),
        (Path("a.csv"), "jsonl", "jsonl"),
        (Path("a.xlsx"), None, "xlsx"),
    ],
)
def test_the_format_is_given_or_follows_from_the_name(path: Path | None, asked: Any, kind: str) -> None:
    assert format_of(path, asked) == kind


@given(data=st.binary(max_size=300))
def test_any_bytes_give_rows_or_a_clear_error(data: bytes) -> None:
    for codec in ("utf-8", "gb18030", "utf-16-le"):
        for read_them in (lambda lines: read_table(lines).rows, read_json_lines):
            try:
                for row in read_them(text_lines([b"prompt\n", data], codec)):
                    if row.problem is None:
                        request_of(row, "b", "r", {})
            except (InputError, RequestError):
                pass


@given(
    text=st.text(st.characters(exclude_characters="\r\n", codec="utf-8")),
    size=st.integers(1, 9),
    codec=st.sampled_from(["utf-8", "gb18030", "utf-16-le"]),
)
def test_lines_do_not_depend_on_how_the_bytes_arrive(text: str, size: int, codec: str) -> None:
    whole = f"a\r\n{text}\rb\n{text}"
    data = io.BytesIO(whole.encode(codec))
    lines = [*text_lines(iter(lambda: data.read(size), b""), codec)]
    assert "".join(lines) == whole
    assert lines[:3] == ["a\r\n", f"{text}\r", "b\n"]
