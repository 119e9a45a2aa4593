"""``zimage dead-letters`` on a real broker: dead letters are found, understood, fixed and sent once."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.commands import Run, Start
from tests.fleet.wire import RawHeader, RawProducer
from tests.fleet.workers import until
from zimage_consumers.dead_letters.release import read_releases
from zimage_consumers.image_worker.stages.verdict import DEPLOYMENT_CODES
from zimage_stream import PromptRequest, Settings
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import Header, dead_letter_headers, without_reasons
from zimage_stream.events.image_result import Code
from zimage_stream.kafka.clients import producer_config
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.kafka.topics import create_topics, make_topics, released_topic, replayed_topic

GARBAGE = b"\x00\x01\xffno avro\n"
OWN: list[Header] = [("mine", b"\xff\x00"), ("mine", b"twice"), ("nothing", None)]


class DeadLetterWriter:
    """Writes dead letters as the worker does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = Producer(producer_config(settings.kafka))

    def write(
        self,
        key: bytes | None,
        value: bytes | None,
        code: str,
        message: str = "why",
        own: Iterable[Header] = OWN,
        offset: int = 14,
        cut: Iterable[Header] = (),
    ) -> None:
        headers = dead_letter_headers(
            own,
            topic=self._settings.topics.requests,
            partition=3,
            offset=offset,
            exception_class="SomeError",
            message=message,
            code=code,
            attempts=1,
            worker="w/0",
            at=datetime.now(UTC),
        )
        pairs: list[tuple[str, str | bytes | None]] = [*headers, *cut]
        topic = self._settings.topics.dead_letters
        self._producer.produce(topic, key=key, value=value, partition=0, headers=pairs)
        assert self._producer.flush(120) == 0

    def write_request(self, request: PromptRequest, code: str = "INVALID_REQUEST") -> bytes:
        value = Codec().encode_request(request, self._settings.topics.requests)
        self.write(request.request_id.encode(), value, code, f"{request.request_id} is wrong")
        return value


@pytest.fixture
def dead_letter_writer(settings: Settings) -> DeadLetterWriter:
    return DeadLetterWriter(settings)


def sent(settings: Settings) -> list[Record]:
    """The values in the requests topic, in the order of their keys."""

    def ends(uncommitted: bool) -> dict[int, int]:
        with TopicReader(settings.kafka, settings.topics.requests, uncommitted=uncommitted) as reader:
            return reader.end_offsets()

    # A transaction is committed a moment before its markers are in the log.
    until(lambda: ends(uncommitted=False) == ends(uncommitted=True), 60, "no transaction is open")
    with TopicReader(settings.kafka, settings.topics.requests) as reader:
        reader.start()
        return sorted(reader.read_to_end(), key=lambda record: str(record.key))


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def headers_of(record: Record) -> dict[str, bytes | None]:
    return dict(record.headers)


def wide(request_id: str, **more: object) -> PromptRequest:
    return PromptRequest(prompt="雾中的灯塔", request_id=request_id, width=65, **more)  # type: ignore[arg-type]


def test_without_dead_letters_the_commands_say_so(zimage: Run) -> None:
    done = zimage("dead-letters", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "there are none" in done.stderr
    assert zimage("dead-letters", "show", "nobody").returncode == 1
    assert zimage("dead-letters", "replay", "--all").returncode == 1


def test_dead_letters_are_grouped_listed_shown_and_exported(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    dead_letter_writer.write(b"k", GARBAGE, "UNDECODABLE", "it is no Avro")
    dead_letter_writer.write(None, None, "UNDECODABLE", "the record has no value")
    value = dead_letter_writer.write_request(wide("a", tenant="acme"))
    groups = {one["code"]: one for one in lines(zimage("dead-letters", "list", "--json").stdout)}
    assert {code: group["count"] for code, group in groups.items()} == {
        "UNDECODABLE": 2,
        "INVALID_REQUEST": 1,
    }
    people = zimage("dead-letters", "list").stdout
    assert people.splitlines()[1].split()[:3] == ["UNDECODABLE", "2", "0"]
    assert [
        one["place"]
        for one in lines(zimage("dead-letters", "list", "--code", "undecodable", "--json").stdout)
    ] == ["0:0", "0:1"]
    assert "a is wrong" in zimage("dead-letters", "list", "--tenant", "acme").stdout

    shown = zimage("dead-letters", "show", "a").stdout
    for piece in ("雾中的灯塔", "INVALID_REQUEST", f"{settings.topics.requests}/3/14", "ff 00", "c3 01"):
        assert piece in shown
    assert "it cannot be read" in zimage("dead-letters", "show", "0:0").stdout

    exported = lines(zimage("dead-letters", "export").stdout)
    assert [one["value"] and base64.b64decode(str(one["value"])) for one in exported] == [
        GARBAGE,
        None,
        value,
    ]
    assert exported[0]["headers"] == [["mine", {"base64": "/wA="}], ["mine", "twice"], ["nothing", None]]
    assert exported[2]["request"] | {"width": 65} == exported[2]["request"]  # type: ignore[operator]


def test_the_bytes_can_be_exported_fixed_and_sent(
    zimage: Run,
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
    dead_letter_writer: DeadLetterWriter,
) -> None:
    dead_letter_writer.write(b"k", GARBAGE, "UNDECODABLE")
    words = [sys.executable, "-m", "zimage_stream", "dead-letters", "show", "0:0", "--raw"]
    env = {"ZIMAGE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers}
    env["ZIMAGE_TOPICS__DEAD_LETTERS"] = settings.topics.dead_letters
    assert subprocess.run(words, env=env, capture_output=True, check=True).stdout == GARBAGE
    file = tmp_path_factory.mktemp("fixed") / "value"
    file.write_bytes(b"fixed")
    assert zimage("dead-letters", "replay", "--at", "0:0", "--set", "width=64").returncode == 1
    assert zimage("dead-letters", "replay", "--at", "0:0", "--value", str(file)).returncode == 0
    (record,) = sent(settings)
    assert (record.key, record.value) == (b"k", b"fixed")


def test_a_replay_sends_the_unchanged_record_and_happens_once(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    values = [dead_letter_writer.write_request(wide(name), "GENERATION_FAILED") for name in ("a", "b")]
    dead_letter_writer.write(b"k", GARBAGE, "UNDECODABLE")
    dry = zimage("dead-letters", "replay", "--all", "--dry-run", "--json")
    assert [one["sent"] for one in lines(dry.stdout)] == [False] * 3
    assert sent(settings) == []

    done = zimage("dead-letters", "replay", "--code", "GENERATION_FAILED", "--limit", "1")
    assert done.returncode == 0, done.stderr
    done = zimage("dead-letters", "replay", "--all", "--json")
    assert [one["place"] for one in lines(done.stdout)] == ["0:1", "0:2"]
    assert "1 left out" in done.stderr
    again = zimage("dead-letters", "replay", "--all")
    assert (again.returncode, again.stdout) == (0, "")

    records = sent(settings)
    assert [record.value for record in records] == [*values, GARBAGE]
    for place, record in enumerate(records):
        headers = list(record.headers)
        assert headers[:3] == without_reasons(headers)[:3] == OWN
        said = headers_of(record)
        assert said["zimage.replays"] == b"1"
        assert said["zimage.replay-of"] == f"{settings.topics.dead_letters}/0/{place}".encode()
        assert "zimage.code" not in said
    listed = lines(zimage("dead-letters", "list", "--json").stdout)
    assert sum(int(str(group["replayed"])) for group in listed) == 3
    assert zimage("dead-letters", "replay", "--id", "a", "--again").returncode == 0
    assert len(sent(settings)) == 4


def largest_that_is_taken(settings: Settings) -> bytes:
    """Send a record of the largest size that the requests topic accepts. Returns its value.

    Random bytes do not shrink in compression; the brokers' own codec adds a few bytes to each block.
    """
    producer = Producer(producer_config(settings.kafka))
    headers: list[tuple[str, str | bytes | None]] = list(OWN)
    refused: list[KafkaError | None] = []
    for size in range((1 << 20) - 100, (1 << 20) - 1_000, -20):
        value = os.urandom(size)
        producer.produce(
            settings.topics.requests,
            key=b"huge",
            value=value,
            partition=0,
            headers=headers,
            on_delivery=lambda error, _: refused.append(error),
        )
        assert producer.flush(120) == 0
        if refused.pop() is None:
            return value
    raise AssertionError("the topic accepts none of them")


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_letter_without_room_for_the_headers_of_a_replay_stops_no_other(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter, tmp_path: Path, guarantee: str
) -> None:
    config = tmp_path / "zimage.toml"
    config.write_text(f'[worker]\nguarantee = "{guarantee}"\n')
    replay = ("--config", str(config), "dead-letters", "replay", "--all")
    for name in ("a", "b"):
        dead_letter_writer.write_request(wide(name))
    huge = largest_that_is_taken(settings)
    assert [record.key for record in sent(settings)] == [b"huge"]
    dead_letter_writer.write(b"huge", huge, "UNDECODABLE")
    for name in ("c", "d"):
        dead_letter_writer.write_request(wide(name))

    done = zimage(*replay)
    assert done.returncode == 1
    assert "0:2 huge is not sent: the brokers refuse it" in done.stderr
    assert done.stderr.splitlines()[-1] == "4 replayed; 1 not sent"
    assert [record.key for record in sent(settings)] == [b"a", b"b", b"c", b"d", b"huge"]
    again = zimage(*replay)
    assert "4 left out" in again.stderr
    assert len(sent(settings)) == 5


def remake(settings: Settings, topic: str) -> None:
    """Delete a topic and create it again."""
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(120)
    until(lambda: topic not in admin.list_topics(timeout=120).topics, 30, "the topic is gone")
    create_topics(settings.kafka, settings.topics, request_partitions=4, replication_factor=1)


def test_after_the_topic_is_created_again_new_letters_do_not_count_as_replayed(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    dead_letter_writer.write_request(wide("a"))
    assert zimage("dead-letters", "replay", "--all").returncode == 0
    remake(settings, settings.topics.dead_letters)
    dead_letter_writer.write_request(wide("b"))
    done = zimage("dead-letters", "replay", "--all")
    assert done.stderr.splitlines()[-1] == "1 replayed"
    assert [record.key for record in sent(settings)] == [b"a", b"b"]
    assert "1 left out" in zimage("dead-letters", "replay", "--all").stderr


def test_notes_of_earlier_versions_count_for_letters_older_than_they_are(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    notes = replayed_topic(settings.topics)
    make_topics(settings.kafka, [notes], 1)
    producer = Producer(producer_config(settings.kafka))
    hour_ago = round((time.time() - 3_600) * 1000)
    producer.produce(notes.name, key=b"0:0", value=b"replayed")
    producer.produce(notes.name, key=b"0:1", value=b"replayed", timestamp=hour_ago)
    producer.produce(notes.name, key=b"no place", value=b"replayed")
    assert producer.flush(120) == 0
    for name in ("a", "b"):
        dead_letter_writer.write_request(wide(name))
    listed = lines(zimage("dead-letters", "list", "--limit", "9", "--json").stdout)
    assert [letter["replayed"] for letter in listed] == [True, False]


def test_fields_are_changed_and_an_expiry_is_cleared(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    past = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    dead_letter_writer.write_request(wide("a", expires_at=past))
    dead_letter_writer.write_request(wide("b", expires_at=past))
    refused = zimage("dead-letters", "replay", "--id", "a", "--set", "width=66")
    assert refused.returncode == 1
    assert "width: got 66" in refused.stderr
    for words in (("--set", "width=wide"), ("--set", "size=1"), ("--set", "width")):
        assert zimage("dead-letters", "replay", "--id", "a", *words).returncode == 2
    change = ("--set", "width=64", "--set", 'attributes={"by": "me"}')
    assert zimage("dead-letters", "replay", "--id", "a", *change).returncode == 0
    assert zimage("dead-letters", "replay", "--id", "b", "--keep-expiry", "--set", "width=64").returncode == 0
    a, b = (Codec().decode_request(record.value) for record in sent(settings))
    assert (a.width, a.expires_at, a.attributes, a.prompt) == (64, None, {"by": "me"}, "雾中的灯塔")
    assert (b.width, b.expires_at) == (64, past)


def test_one_value_cannot_be_sent_for_several_letters(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    for name in ("a", "b"):
        dead_letter_writer.write_request(wide(name))
    done = zimage("dead-letters", "replay", "--all", "--set", "width=64", "--set", "request_id=c")
    assert done.returncode == 2
    assert sent(settings) == []


def test_a_request_that_fails_again_counts_its_replays(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    dead_letter_writer.write_request(wide("a"))
    zimage("dead-letters", "replay", "--all")
    (record,) = sent(settings)
    dead_letter_writer.write(b"a", record.value, "INVALID_REQUEST", own=list(record.headers))
    shown = lines(zimage("dead-letters", "show", "a", "--json").stdout)
    assert [(one["place"], one["replays"], one["replayed"]) for one in shown] == [
        ("0:0", 0, True),
        ("0:1", 1, False),
    ]
    zimage("dead-letters", "replay", "--all")
    assert [headers_of(record)["zimage.replays"] for record in sent(settings)] in (
        [b"1", b"2"],
        [b"2", b"1"],
    )


def test_a_concurrent_replay_is_fenced(
    settings: Settings, start: Start, dead_letter_writer: DeadLetterWriter
) -> None:
    for number in range(30):
        dead_letter_writer.write_request(wide(f"r-{number}"))
    both = [start("dead-letters", "replay", "--all") for _ in range(2)]
    for process in both:
        process.communicate(timeout=120)
    assert 0 in {process.returncode for process in both}
    assert len({record.key for record in sent(settings)}) == len(sent(settings)) == 30


def test_wrong_usage_names_the_remedy(zimage: Run) -> None:
    for words in (
        ("replay",),
        ("replay", "--code", "NOSUCH"),
        ("replay", "--at", "7"),
        ("replay", "--at", "0:1", "--value", "/no/such/file"),
        ("show",),
    ):
        done = zimage("dead-letters", *words)
        assert (done.returncode, done.stdout) == (2, ""), words


class TestReleasing:
    def test_is_seen_by_workers_until_it_expires(self, settings: Settings, zimage: Run) -> None:
        assert read_releases(settings) == {}
        before = time.time()
        done = zimage("dead-letters", "release", "--code", "unknown_schema", "--minutes", "10")
        assert done.returncode == 0, done.stderr
        assert "UNKNOWN_SCHEMA: nothing is held back until" in done.stderr
        found = read_releases(settings)
        assert found.keys() == {Code.UNKNOWN_SCHEMA}
        assert before + 600 <= found[Code.UNKNOWN_SCHEMA] <= time.time() + 600
        # An invalid note has no effect.
        producer = Producer(producer_config(settings.kafka))
        for key, value in ((b"GENERATION_FAILED", b"{}"), (b"\xff", b"{"), (None, None)):
            producer.produce(released_topic(settings.topics).name, value, key or b"none")
        assert producer.flush(120) == 0
        assert read_releases(settings) == found
        assert zimage("dead-letters", "release", "--minutes", "0").returncode == 0
        found = read_releases(settings)
        assert found.keys() == set(DEPLOYMENT_CODES)
        assert max(found.values()) <= time.time()

    def test_refuses_a_code_that_is_never_held_back(self, zimage: Run) -> None:
        done = zimage("dead-letters", "release", "--code", "INVALID_REQUEST")
        assert done.returncode == 2
        assert "is never held back" in done.stderr


class TestACutDeadLetter:
    VALUE = GARBAGE * 100

    def write(self, settings: Settings, dead_letter_writer: DeadLetterWriter, value: bytes = VALUE) -> None:
        """Send a record to the requests topic, and write a dead letter with its first bytes."""
        producer = Producer(producer_config(settings.kafka))
        own: list[tuple[str, str | bytes | None]] = list(OWN)
        topic = settings.topics.requests
        producer.produce(topic, key=b"k", value=value, partition=3, headers=own)
        assert producer.flush(120) == 0
        cut: list[Header] = [
            ("zimage.value-bytes", str(len(self.VALUE)).encode()),
            ("zimage.value-sha256", sha256(self.VALUE).hexdigest().encode()),
            ("zimage.headers-left-out", b"3"),
        ]
        dead_letter_writer.write(b"k", self.VALUE[:10], "UNDECODABLE", own=(), offset=0, cut=cut)

    def test_is_shown_as_such_and_replayed_from_its_record(
        self, zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
    ) -> None:
        self.write(settings, dead_letter_writer)
        shown = zimage("dead-letters", "show", "0:0").stdout
        assert "left out     value-bytes 1100, value-sha256" in shown
        assert f"is at {settings.topics.requests}/3/0" in shown
        (listed,) = lines(zimage("dead-letters", "list", "--code", "UNDECODABLE", "--json").stdout)
        assert listed["cut"]["headers-left-out"] == "3"  # type: ignore[index]
        assert "(cut)" in zimage("dead-letters", "list", "--code", "UNDECODABLE").stdout
        done = zimage("dead-letters", "replay", "--all")
        assert done.returncode == 0, done.stderr
        first, again = sent(settings)
        for record in (first, again):
            assert (record.key, record.value) == (b"k", self.VALUE)
            assert without_reasons(list(record.headers))[:3] == OWN

    def test_is_refused_if_another_record_is_at_its_position(
        self, zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
    ) -> None:
        self.write(settings, dead_letter_writer, b"something else")
        for words in (("replay", "--all"), ("show", "0:0", "--raw")):
            done = zimage("dead-letters", *words)
            assert (done.returncode, done.stdout) == (1, "")
            assert "is another one" in done.stderr
        assert len(sent(settings)) == 1

    @pytest.mark.parametrize("headers_left_out", [b"1", b"all"])
    def test_gets_its_key_back_and_no_other_record(
        self, zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter, headers_left_out: bytes
    ) -> None:
        key = b"k" * (2 << 20)
        producer = Producer(producer_config(settings.kafka))
        for value in (self.VALUE, b"something else"):
            producer.produce(settings.topics.requests, key=key, value=value, partition=3)
        assert producer.flush(120) == 0
        first = ((3, 0), (3, 1))
        cut: list[Header] = [
            ("zimage.key-bytes", str(len(key)).encode()),
            ("zimage.headers-left-out", headers_left_out),
        ]
        for offset in (0, 1):
            dead_letter_writer.write(None, self.VALUE, "UNDECODABLE", own=(), offset=offset, cut=cut)
        done = zimage("dead-letters", "replay", "--all")
        assert done.returncode == 1
        assert "0:1 - is not sent" in done.stderr
        assert "is another one" in done.stderr
        (again,) = [record for record in sent(settings) if (record.partition, record.offset) not in first]
        assert (again.key, again.value) == (key, self.VALUE)

    def test_is_refused_if_its_record_is_gone(
        self, zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
    ) -> None:
        self.write(settings, dead_letter_writer)
        admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
        for answer in admin.delete_records([TopicPartition(settings.topics.requests, 3, 1)]).values():
            answer.result(120)
        done = zimage("dead-letters", "replay", "--all")
        assert done.returncode == 1
        assert "which is not kept any more" in done.stderr
        assert "give its bytes with --value" in done.stderr


def test_megabytes_are_shortened_for_people_and_whole_for_programs(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    key = b"k" * (2 << 20)
    dead_letter_writer.write(key, GARBAGE, "UNDECODABLE", own=[("mine", b"x" * (1 << 20))])
    for words in (("list", "--code", "UNDECODABLE"), ("show", "0:0"), ("replay", "--all", "--dry-run")):
        done = zimage("dead-letters", *words)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) < 20_000
    assert "2,097,152 bytes" in zimage("dead-letters", "show", "0:0").stdout
    for whole in (("show", "0:0", "--json"), ("export",), ("list", "--code", "UNDECODABLE", "--json")):
        (one,) = lines(zimage("dead-letters", *whole).stdout)
        assert base64.b64decode(str(one["key"])) == key
        assert one["headers"] == [["mine", "x" * (1 << 20)]]


def test_foreign_records_in_these_topics_are_skipped(
    zimage: Run, settings: Settings, dead_letter_writer: DeadLetterWriter
) -> None:
    dead_letter_writer.write_request(wide("a"))
    assert zimage("dead-letters", "replay", "--all").returncode == 0
    with RawProducer(settings.kafka.bootstrap_servers) as producer:
        strange: list[RawHeader] = [(b"\xff", b"x"), (b"zimage.code", b"\xff")]
        producer.send(settings.topics.dead_letters, b"?", key=b"\xff", headers=strange)
        producer.send(settings.topics.dead_letters, None, timestamp=-(10**15))
        for key in (None, b"", b"\xff", b"no place"):
            producer.send(f"{settings.topics.dead_letters}.replayed", b"x", key=key)
    groups = {one["code"]: one["count"] for one in lines(zimage("dead-letters", "list", "--json").stdout)}
    assert groups == {"INVALID_REQUEST": 1, "(unsaid)": 2}
    assert len(lines(zimage("dead-letters", "export").stdout)) == 3
    assert zimage("dead-letters", "show", "0:1").returncode == 0
    assert zimage("dead-letters", "replay", "--code", "INVALID_REQUEST").stdout == ""
