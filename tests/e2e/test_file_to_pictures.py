"""Two hundred product pictures by one command, made by two workers."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.fleet.arena import Arena
from zimage_stream.settings import environment_of

ROWS = 200
COLOURS = ("red", "blue", "绿色", "黄色")


def test_two_hundred_rows_become_two_hundred_images(arena: Arena, tmp_path: Path) -> None:
    for name in ("first", "second"):
        arena.fleet.start(name, ZIMAGE_ENGINE__SIMULATED_MS="80")
    for worker in arena.fleet.workers:
        worker.wait_ready()
    table = tmp_path / "products.csv"
    with table.open("w", encoding="utf-8-sig", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(["sku", "prompt", "width", "height"])
        writer.writerows([f"A-{n:03d}", f"{COLOURS[n % 4]} chair {n}", 256, 256] for n in range(ROWS))
    out = tmp_path / "pictures"

    command = (
        "produce",
        "--file",
        str(table),
        "--batch",
        "spring",
        "--name-by",
        "sku",
        "--out",
        str(out),
        "--wait",
    )
    done = subprocess.run(
        [sys.executable, "-m", "zimage_stream", *command],
        env=environment_of(arena.settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(r"succeeded 200, failed 0", said), said
    assert re.search(r"[\d.]+ s\b", said), said
    assert re.search(r"[\d.]+ images/s", said), said

    pictures = sorted(out.glob("*.png"))
    assert [picture.stem for picture in pictures] == [f"A-{n:03d}" for n in range(ROWS)]
    with Image.open(pictures[0]) as first:
        assert first.size == (256, 256)
    with (out / "results.csv").open(encoding="utf-8-sig", newline="") as source:
        rows = list(csv.DictReader(source))
    assert {row["status"] for row in rows} == {"SUCCEEDED"}
    assert len(rows) == ROWS

    report = arena.report()
    assert len(report.results) == ROWS
    assert report.duplicates == []
    assert report.mismatched == []
    by_request = report.by_request()
    assert all(request_id.startswith("spring-") for request_id in by_request)
    assert "A-000" in {result["attributes"]["sku"] for result in by_request.values()}
    assert {result["worker"] for result in by_request.values()} == {"first", "second"}
