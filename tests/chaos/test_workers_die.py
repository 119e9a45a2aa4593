"""A prompt that kills the process that runs it is convicted, and no other request is."""

from __future__ import annotations

import json

from tests.fleet.arena import Arena
from tests.fleet.workers import until
from zimage_stream import PromptRequest


def image_requests(count: int, prompt: str = "picture", **fields: object) -> list[PromptRequest]:
    """Requests that take 20 ms each at 256x256, and 320 ms at full size."""
    return [PromptRequest(prompt=f"{prompt} {i}", width=256, height=256, **fields) for i in range(count)]  # type: ignore[arg-type]


def test_a_prompt_that_kills_the_process_harms_no_other_request(arena: Arena) -> None:
    faults = {"ZIMAGE_ENGINE__SIMULATED_FAULTS": json.dumps({"poison": "kill"})}
    worker = arena.fleet.start("victim", **faults).wait_ready()
    before, after = image_requests(40, "before"), image_requests(40, "after")
    poison = PromptRequest(prompt="poison", width=256, height=256)
    arena.send([*before, poison, *after])

    deaths = 0

    def answered() -> bool:
        nonlocal deaths
        if worker.exit_code() is not None:
            deaths += 1
            worker.start()
        return len(arena.seen()) == len(arena.accepted)

    until(answered, 120, "every request is answered")
    report = arena.report()
    arena.assert_exactly_once(report)
    results = report.by_request()
    dead = results.pop(poison.request_id)
    assert (dead["status"], dead["error"]["code"], dead["attempts"]) == ("FAILED", "WORKER_CRASHED", 3)
    assert {result["status"] for result in results.values()} == {"SUCCEEDED"}
    # Once together with others, which only makes it suspect, and three times alone.
    assert deaths == 4
