"""Generates the tables of ``docs/wire.md`` from the schemas, the topics and the cases of bad input.

``python -m tools.render_wire`` writes them between the markers in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.integration.bad_input import CASES
from zimage_stream.events.schemas import (
    CANCELLATION,
    IMAGE_RESULT,
    PROGRESS,
    PROMPT_REQUEST,
    current,
    published,
)
from zimage_stream.kafka.topics import TopicSpec, released_topic, replayed_topic, required_topics
from zimage_stream.settings import TopicSettings

PAGE = Path(__file__).parents[1] / "docs" / "wire.md"

_MARKED = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
_HOUR_MS = 3_600 * 1_000


def rendered(page: str) -> str:
    """Return the page with its tables regenerated.

    Raises:
        KeyError: a marker names an unknown table.
    """
    tables = {
        "topics": topics_table(),
        "request": schema_table(PROMPT_REQUEST),
        "result": schema_table(IMAGE_RESULT),
        "cancellation": schema_table(CANCELLATION),
        "progress": schema_table(PROGRESS),
        "bad-input": bad_input_table(),
        "versions": versions_table(),
    }
    return _MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", page)


def schema_table(name: str) -> str:
    """Return the table of an event's fields; those of nested records have dotted names."""
    schema = json.loads(current(name).text)
    mark = current(name).fingerprint.hex(" ")
    head = f"Fingerprint (CRC-64-AVRO, as it is written): `{mark}`\n\n"
    return head + "| field | type | default | |\n|---|---|---|---|\n" + "".join(_field_rows(schema, ""))


def _field_rows(record: Mapping[str, Any], prefix: str) -> list[str]:
    rows = []
    for field in record["fields"]:
        default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
        name = prefix + field["name"]
        rows.append(f"| `{name}` | {_type(field['type'])} | {default} | {_cell(field.get('doc', ''))} |\n")
        for nested in field["type"] if isinstance(field["type"], list) else [field["type"]]:
            if isinstance(nested, dict) and nested["type"] == "record":
                rows += _field_rows(nested, f"{name}.")
    return rows


def _type(avro: Any) -> str:
    if isinstance(avro, list):
        kinds = [_type(each) for each in avro if each != "null"]
        return " or ".join(kinds) + (", nullable" if "null" in avro else "")
    if isinstance(avro, str):
        return avro
    if "logicalType" in avro:
        return str(avro["logicalType"])
    if avro["type"] == "map":
        return f"map of {_type(avro['values'])}"
    if avro["type"] == "enum":
        return "enum: " + ", ".join(avro["symbols"])
    return str(avro["type"])


def topics_table() -> str:
    """Return the table of the topics and their requirements."""
    names = TopicSettings()
    head = "| topic | partitions | key | kept | largest record | |\n|---|---|---|---|---|---|\n"
    keys = ("`request_id`", "`request_id`", "as sent", "`request_id`", "`request_id`")
    notes = (
        "requests",
        "results, in transactions",
        "records that could not be served, as sent",
        "cancellations, each in the partition of the same number as its request's",
        "progress of requests; may be lost",
    )
    rows = [
        _topic_row(spec, key, note)
        for spec, key, note in zip(required_topics(names), keys, notes, strict=True)
    ]
    rows.append(_topic_row(replayed_topic(names), "`partition:offset`", "which dead letters were replayed"))
    note = "the time until which requests that fail with the code are not held back"
    rows.append(_topic_row(released_topic(names), "a code", note))
    return head + "".join(rows)


def _topic_row(spec: TopicSpec, key: str, note: str) -> str:
    size = spec.at_least.get("max.message.bytes")
    compacted = spec.exactly["cleanup.policy"] == "compact"
    cells = (
        f"`{spec.name}`",
        str(spec.partitions),
        key,
        "compacted" if compacted else _span(int(spec.config["retention.ms"])),
        f"{size >> 20} MiB" if size else "small",
        note,
    )
    return f"| {' | '.join(cells)} |\n"


def _span(milliseconds: int) -> str:
    hours = milliseconds // _HOUR_MS
    if hours == 1:
        return "1 hour"
    return f"{hours} hours" if hours < 48 else f"{hours // 24} days"


def bad_input_table() -> str:
    """Return the table of bad input: each case, its outcome, and part of the message; all are tested."""
    rows = (
        f"| {case.sent} | {case.outcome} | {'yes' if case.has_result else 'no'} | "
        f"{f'… {_cell(case.says)} …' if case.says else ''} |\n"
        for case in CASES
    )
    return "| sent | outcome | result | the message says |\n|---|---|---|---|\n" + "".join(rows)


def versions_table() -> str:
    """Return the table of the schemas that have several versions, with what each version added."""
    rows = []
    for name, versions in sorted(published().items()):
        known: list[str] = []
        for schema in versions if len(versions) > 1 else ():
            fields = [field["name"] for field in json.loads(schema.text)["fields"]]
            added = ", ".join(f"`{field}`" for field in fields if field not in known)
            mark, number = schema.fingerprint.hex(" "), schema.version
            rows.append(f"| {name} | {number} | `{mark}` | {added if number > 1 else ''} |\n")
            known = fields
    return "| schema | version | fingerprint | new fields |\n|---|---|---|---|\n" + "".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
