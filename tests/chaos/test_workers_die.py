"""Workers that are killed, frozen or poisoned: one terminal event for each request, all the same."""

from __future__ import annotations

import json
import signal

from tests.fleet.arena import Arena
from tests.fleet.workers import until
from zimage_stream import PromptRequest

SESSION_S = 10.0


def pictures(count: int, prompt: str = "picture", **fields: object) -> list[PromptRequest]:
    """Requests that take 20 ms each at 256x256 and 320 ms for a full picture."""
    return [PromptRequest(prompt=f"{prompt} {i}", width=256, height=256, **fields) for i in range(count)]  # type: ignore[arg-type]


def test_three_workers_two_killed_one_frozen_past_its_session(arena: Arena) -> None:
    first = arena.fleet.start("first")
    second = arena.fleet.start("second")
    # Other bytes for equal specs: should it ever overwrite an object, the digest would tell.
    zombie = arena.fleet.start("zombie", ZIMAGE_ENGINE__SIMULATED_SALT="another card")
    for worker in (first, second, zombie):
        worker.wait_ready()
    until(lambda: zombie.partitions() > 0, 30, "the zombie-to-be holds partitions")
    arena.send(pictures(1_000))

    arena.wait_answered(60, share=0.1)
    zombie.signal(signal.SIGSTOP)
    first.kill()
    first.start()
    arena.wait_answered(90, share=0.4)
    second.kill()
    second.start()
    arena.wait_answered(120, share=0.99)
    until(lambda: first.ready()[0] and second.ready()[0], 60, "the killed ones are back")
    zombie.signal(signal.SIGCONT)
    until(
        lambda: any(
            "were lost" in line["message"] or "thrown away" in line["message"] for line in zombie.lines()
        ),
        60,
        "the frozen one has noticed",
    )
    arena.send(pictures(30, "after"))

    report = arena.wait_answered(120)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 1_030}


def test_a_prompt_that_kills_the_process_harms_nobody_else(arena: Arena) -> None:
    faults = {"ZIMAGE_ENGINE__SIMULATED_FAULTS": json.dumps({"poison": "kill"})}
    worker = arena.fleet.start("victim", **faults).wait_ready()
    before, after = pictures(40, "before"), pictures(40, "after")
    poison = PromptRequest(prompt="poison", width=256, height=256)
    arena.send([*before, poison, *after])

    deaths = 0

    def answered() -> bool:
        nonlocal deaths
        if worker.exit_code() is not None:
            deaths += 1
            worker.start()
        return arena.answered() == len(arena.accepted)

    until(answered, 120, "every request is answered")
    report = arena.report()
    arena.assert_exactly_once(report)
    results = report.by_request()
    dead = results.pop(poison.request_id)
    assert (dead["status"], dead["error"]["code"], dead["attempts"]) == ("FAILED", "WORKER_CRASHED", 3)
    assert {result["status"] for result in results.values()} == {"SUCCEEDED"}
    # Once in company, which only makes it suspect, and three times alone.
    assert deaths == 4
