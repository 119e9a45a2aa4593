"""``zimage produce`` and ``zimage results`` as a user types them, on a real broker."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

from tests.commands import DEADLINE_S, Run, Start
from tests.integration.answers import Answers
from zimage_stream import Settings
from zimage_stream.stores import ImageStore


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        return {row["request_id"]: row for row in csv.DictReader(file)}


def test_one_prompt_becomes_an_image_file(
    zimage: Run, settings: Settings, store: ImageStore, tmp_path: Path
) -> None:
    with Answers(settings, store):
        words = ("produce", "雾中的灯塔", "--request-id", "fog", "--out", "pictures", "--timeout", "30")
        done = zimage(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"SUCCEEDED fog  {store.uri('default/fog.png')}\n"
    assert (tmp_path / "pictures" / "fog.png").read_text() == "a picture of 雾中的灯塔"


def test_a_failed_prompt_exits_with_1_and_states_the_reason(zimage: Run, settings: Settings) -> None:
    with Answers(settings):
        done = zimage("produce", "fail", "--wait", "--timeout", "30", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "GENERATION_FAILED"


def test_waiting_without_a_worker_times_out(zimage: Run) -> None:
    done = zimage("produce", "a", "--request-id", "r", "--wait", "--timeout", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "zimage: no result within 1 s for 1 request(s): r\n"


def test_a_file_of_prompts_from_a_chinese_spreadsheet(
    zimage: Run, settings: Settings, store: ImageStore, tmp_path: Path
) -> None:
    text = "prompt,城市,width\n雾中的灯塔,上海,64\nfail,北京,64\n太宽,广州,65\n竹林,成都,128\n"
    (tmp_path / "城市.csv").write_text(text, encoding="gb18030")
    with Answers(settings, store) as answers:
        words = ("produce", "--file", "城市.csv", "--batch", "cities", "--out", "out", "--name-by", "城市")
        done = zimage(*words, "--timeout", "30", "--tenant", "studio")
        assert done.returncode == 1, done.stderr
        first = {request.request_id: request for request in answers.requests}
        assert zimage(*words, "--timeout", "30", "--tenant", "studio").returncode == 1
    assert "read as CSV in GB18030" in done.stderr
    assert "columns that are not fields are returned as attributes: 城市\n" in done.stderr
    assert "line 4: width: got 65" in done.stderr
    (failed_id,) = [each for each, request in first.items() if "fail" in request.prompt]
    assert f"line 3: FAILED    {failed_id}  GENERATION_FAILED" in done.stderr
    assert done.stdout.startswith("accepted 3, succeeded 2, failed 2, ")
    assert "images/s" in done.stdout
    assert len(first) == 3
    assert all(each.startswith("cities-") for each in first)
    assert {"城市": "上海"} in [request.attributes for request in first.values()]
    assert {request.tenant for request in first.values()} == {"studio"}
    # The second run requested the same images under the same ids, and created no further files.
    assert len(answers.requests) == 6
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"上海.png", "成都.png", "results.csv", "index.html"}
    assert {row["status"] for row in table(tmp_path / "out").values()} == {"SUCCEEDED", "FAILED"}


def test_every_line_of_a_long_file_is_answered(zimage: Run, settings: Settings) -> None:
    count = 3_000
    lines = "".join(json.dumps({"prompt": f"fail {number}"}) + "\n" for number in range(count))
    with Answers(settings):
        done = zimage(
            "produce", "--file", "-", "--batch", "b", "--wait", "--timeout", "30", "--json", stdin=lines
        )
    answered = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({one["request_id"] for one in answered}) == len(answered) == count
    assert f"accepted {count:,}, succeeded 0, failed {count:,}" in done.stderr


def piped(start: Start, data: bytes, *words: str) -> tuple[int, str, str]:
    process = start(*words)
    assert process.stdin is not None
    os.write(process.stdin.fileno(), data)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def test_an_invalid_byte_in_a_pipe_is_reported_with_its_position_and_how_to_resume(start: Start) -> None:
    lines = b"".join(b'{"prompt": "fail %d"}\n' % number for number in range(1, 1_501))
    words = ("produce", "--file", "-", "--batch", "b")
    status, out, err = piped(start, lines + b'{"prompt": "caf\xe9"}\n{"prompt": "never"}\n', *words)
    assert (status, "Traceback" in err) == (1, False), err
    assert out.startswith("accepted 1,500, failed 0")
    assert "the input: line 1,501, column 16: byte 0xE9 is not UTF-8; the rest was not read" in err
    assert "to resume: zimage produce --file - --batch b (with the same input)" in err
    status, out, err = piped(start, b'{"prompt": "caf\xe9"}\n', *words, "--encoding", "cp1252")
    assert (status, out[:10]) == (0, "accepted 1"), err
    assert "read as JSONL in CP1252 (as requested)" in err


def test_an_ambiguous_file_sends_nothing(zimage: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt\nun éléphant rouge\n".encode("cp1252"))
    done = zimage("produce", "--file", "a.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--encoding cp1252" in " ".join(done.stderr.split())


def test_an_interrupted_run_says_how_to_resume(start: Start, settings: Settings, tmp_path: Path) -> None:
    lines = '{"prompt": "fail"}\n{"prompt": "silence"}\n'
    (tmp_path / "p.jsonl").write_text(lines, encoding="utf-8")
    with Answers(settings):
        process = start("produce", "--file", "p.jsonl", "--batch", "b 1", "--wait", "--json")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["status"] == "FAILED"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "to resume: zimage produce --file p.jsonl --batch 'b 1' --wait" in err
    assert "succeeded 0, failed 1" in err
    assert "Traceback" not in err


def test_results_are_shown_filtered_and_saved(
    zimage: Run, settings: Settings, store: ImageStore, tmp_path: Path
) -> None:
    with Answers(settings, store):
        for name, batch in (("one", "cats"), ("fail", "cats"), ("two", "dogs")):
            words = ("produce", name, "--request-id", name, "--batch", batch, "--wait", "--timeout", "30")
            zimage(*words)
    everything = zimage("results", "--json")
    assert everything.returncode == 0, everything.stderr
    assert sorted(json.loads(line)["request_id"] for line in everything.stdout.splitlines()) == [
        "fail",
        "one",
        "two",
    ]
    chosen = zimage("results", "--batch", "cats", "--status", "failed")
    assert chosen.stdout == "FAILED    fail  GENERATION_FAILED: it would not\n"
    saved = zimage("results", "--out", "saved", "--id", "one", "--id", "two")
    assert saved.returncode == 0
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "one.png",
        "two.png",
        "results.csv",
        "index.html",
    }
    missing = zimage("results", "--id", "nosuch")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "there are no such results" in missing.stderr


def test_following_ends_once_the_requested_results_have_arrived(
    start: Start, zimage: Run, settings: Settings
) -> None:
    process = start("results", "--follow", "--id", "late")
    with Answers(settings):
        zimage("produce", "fail", "--request-id", "late")
        out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert out.startswith("FAILED    late")


def test_following_ends_at_the_timeout(zimage: Run) -> None:
    done = zimage("results", "--follow", "--id", "never", "--timeout", "1")
    assert done.returncode == 1
    assert "never" in done.stderr
    assert zimage("results", "--follow", "--timeout", "1").returncode == 0


def test_topics_are_checked(zimage: Run) -> None:
    done = zimage("topics", "check", "--json")
    assert done.returncode == 1
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["severity"], one["setting"]) for one in said] == [
        ("error", "partitions"),
        ("error", "partitions"),
        ("warning", "brokers"),
    ]
    done = zimage("topics", "check", "--partitions", "4")
    assert done.returncode == 0
    warning, verdict = done.stdout.splitlines()
    assert warning.startswith("warning: the cluster: brokers is 1")
    assert verdict == "the topics meet all requirements"
    assert [line.split()[1:] for line in zimage("topics", "create").stdout.splitlines()] == [
        ["already", "existed"]
    ] * 5
