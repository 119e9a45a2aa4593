from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zimage_stream import Failure, ImageResult, Source, Status, StoredImage
from zimage_stream.client.saving import Saver, SavingError, safe_name
from zimage_stream.imaging import encode
from zimage_stream.stores import ImageStore
from zimage_stream.stores.directory import DirectoryStore

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    store = DirectoryStore(tmp_path / "store")
    store.create()
    yield store
    store.close()


def stored(store: ImageStore, request_id: str, data: bytes, tenant: str = "default") -> ImageResult:
    key = f"{tenant}/{request_id}.png"
    store.put(key, data, "image/png", {})
    image = StoredImage(
        uri=store.uri(key),
        url=None,
        bucket=store.bucket,
        key=key,
        content_type="image/png",
        width=64,
        height=64,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        seed=1,
        steps=8,
        guidance_scale=0.0,
    )
    return ImageResult(
        request_id=request_id,
        tenant=tenant,
        status=Status.SUCCEEDED,
        source=Source(topic="t", partition=0, offset=0),
        requested_at=AT,
        completed_at=AT,
        image=image,
    )


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


def test_images_are_saved_with_a_table(store: ImageStore, tmp_path: Path) -> None:
    out = tmp_path / "out" / "deep"
    failed = replace(
        stored(store, "c", b"-"),
        status=Status.FAILED,
        image=None,
        error=Failure(code="OUT_OF_MEMORY", message="太大", retriable=False),
        attributes={"城市": "上海"},
    )
    with Saver(store, out) as saver:
        saver.save(stored(store, "a", b"one"))
        saver.save(stored(store, "b", b"two"), "雾中的 灯塔/..")
        saver.save(failed)
    assert pictures(out) == {"a.png": b"one", "雾中的_灯塔.png": b"two"}
    assert (saver.saved, saver.failed) == (2, 0)
    rows = {row["request_id"]: row for row in table(out)}
    assert rows["b"]["file"] == "雾中的_灯塔.png"
    assert rows["a"]["sha256"] == hashlib.sha256(b"one").hexdigest()
    assert (rows["c"]["code"], rows["c"]["message"], rows["c"]["file"]) == ("OUT_OF_MEMORY", "太大", "")
    assert "上海" in rows["c"]["attributes"]


def test_two_images_with_one_name_are_both_saved(store: ImageStore, tmp_path: Path) -> None:
    with Saver(store, tmp_path / "out") as saver:
        for number in range(20):
            saver.save(stored(store, f"r{number}", b"%d" % number), "same")
    assert sorted(pictures(tmp_path / "out").values()) == sorted(b"%d" % number for number in range(20))
    assert len({row["file"] for row in table(tmp_path / "out")}) == 20


def test_a_second_run_fetches_no_image_again(store: ImageStore, tmp_path: Path) -> None:
    result = stored(store, "a", b"one")
    with Saver(store, tmp_path / "out") as saver:
        saver.save(result)
    (tmp_path / "store" / "default" / "a.png").unlink()
    with Saver(store, tmp_path / "out") as saver:
        saver.save(result)
    assert (saver.saved, saver.problems) == (1, [])
    assert pictures(tmp_path / "out") == {"a.png": b"one"}


def test_damaged_bytes_are_not_saved(store: ImageStore, tmp_path: Path) -> None:
    result = stored(store, "a", b"one")
    (tmp_path / "store" / "default" / "a.png").write_bytes(b"eno")
    with Saver(store, tmp_path / "out") as saver:
        saver.save(result)
        saver.save(stored(store, "b", b"two"))
    assert saver.failed == 1
    assert "sha256" in saver.problems[0]
    assert pictures(tmp_path / "out") == {"b.png": b"two"}


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\n=", "＝", "＋", "－", "＠"])
def test_a_spreadsheet_does_not_run_untrusted_text(store: ImageStore, tmp_path: Path, sign: str) -> None:
    error = Failure(code="GENERATION_FAILED", message=f"{sign}cmd|' /C calc'!A0", retriable=True)
    with Saver(store, tmp_path / "out") as saver:
        saver.save(replace(stored(store, "a", b"one"), status=Status.FAILED, image=None, error=error))
    assert table(tmp_path / "out")[0]["message"].startswith(f"'{sign}")


def test_a_folder_that_cannot_be_created_is_reported(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SavingError, match="out"):
        Saver(store, tmp_path / "out")


@given(text=st.text(max_size=300))
def test_every_text_becomes_a_safe_name(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name.encode()) <= 201
    assert not name.startswith(".")
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert name.split(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1")


def test_long_names_are_cut_to_a_number_of_bytes_and_stay_distinct() -> None:
    names = [safe_name("千里江山图" * 17 + end) for end in ("甲", "乙")]
    assert all(len(name.encode()) <= 200 for name in names)
    assert names[0] != names[1]
    assert names[0].startswith("千里江山图")


def test_an_image_whose_name_is_84_chinese_characters_is_saved(store: ImageStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Saver(store, out) as saver:
        saver.save(stored(store, "a", b"no picture at all"), name="千" * 84, prompt="x")
    assert saver.failed == 0
    (row,) = table(out)
    assert (out / row["file"]).read_bytes() == b"no picture at all"


def test_partial_files_of_killed_runs_are_removed_and_those_of_running_ones_kept(
    store: ImageStore, tmp_path: Path
) -> None:
    old, young = tmp_path / ".0123456789abcdef.part", tmp_path / ".fedcba9876543210.part"
    mine = tmp_path / ".mine.part"
    for path in (old, young, mine):
        path.write_bytes(b"half")
    for path in (old, mine):
        os.utime(path, (0, 0))
    with Saver(store, tmp_path):
        pass
    assert [path.exists() for path in (old, young, mine)] == [False, True, True]


@pytest.mark.parametrize(
    "prompt", ["'=1+1", "=1+1", "'+' sign", "''=", "'quoted'", "'", "'-ish", "x" * 31_999]
)
def test_the_page_shows_a_prompt_unchanged(store: ImageStore, tmp_path: Path, prompt: str) -> None:
    with Saver(store, tmp_path) as saver:
        saver.save(stored(store, "a", b"no picture at all"), prompt=prompt)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    (row,) = json.loads(page.split('id="data">')[1].split("</script>")[0])["rows"]
    assert row["prompt"] == prompt
    assert not table(tmp_path)[0]["prompt"].startswith(("=", "+", "-", "@"))


def test_a_cell_too_long_for_a_spreadsheet_is_cut_and_the_page_is_written(
    store: ImageStore, tmp_path: Path
) -> None:
    with Saver(store, tmp_path) as saver:
        saver.save(stored(store, "a", b"no picture at all"), prompt="x" * 200_000)
    assert table(tmp_path)[0]["prompt"].endswith("… (200,000 characters)")
    assert (tmp_path / "index.html").exists()


def test_the_page_shows_the_rows_of_the_table(store: ImageStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = encode(Image.new("RGB", (8, 8)), "png", None, {"prompt": "a lighthouse"}).data
    with Saver(store, out, "lights") as saver:
        saver.save(stored(store, "a", data))
        saver.save(stored(store, "b", b"no picture at all"), prompt="=SUM(1)")
    page = (out / "index.html").read_text(encoding="utf-8")
    rows = json.loads(page.split('id="data">')[1].split("</script>")[0])["rows"]
    assert {row["request_id"]: row["prompt"] for row in rows} == {"a": "a lighthouse", "b": "=SUM(1)"}
    assert {row["width"] for row in rows} == {64}
    assert {row["prompt"] for row in table(out)} == {"a lighthouse", "'=SUM(1)"}


def test_a_partial_file_that_disappears_during_cleanup_is_ignored(store: ImageStore, tmp_path: Path) -> None:
    # A dangling link is listed, but its target does not exist.
    (tmp_path / ".0123456789abcdef.part").symlink_to(tmp_path / "gone")
    with Saver(store, tmp_path) as saver:
        saver.save(stored(store, "a", b"one"))
    assert pictures(tmp_path) == {"a.png": b"one"}
