"""What a record may request: whatever it holds, the engine only receives what it can generate."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hyp_settings
from hypothesis import strategies as st

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.stages.verdict import Action, IntakeError, judge
from zimage_consumers.image_worker.window.jobs import Job
from zimage_stream.engines.base import MAX_PROMPT_TOKENS, ImageSpec
from zimage_stream.errors import RequestError, WireError
from zimage_stream.events import PromptRequest
from zimage_stream.events.codec import Codec
from zimage_stream.events.rules import Limits

CODEC = Codec()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_PIXELS = 1024 * 1024

ints = st.integers(-(2**31), 2**31 - 1)
longs = st.integers(-(2**63), 2**63 - 1)
sides = st.sampled_from([0, 16, 63, 64, 65, 80, 512, 1024, 1040, 2048, 2064, -64]) | ints
prompts = st.text(max_size=30) | st.sampled_from(
    ["", " ", "a\0b", "x" * 2_000, "x" * 2_001, "e\u0301", "\u202eright to left", "word " * 400, "\x7f"]
)
WILD: dict[str, st.SearchStrategy[Any]] = {
    "prompt": prompts,
    "request_id": st.sampled_from(["r-1", "", "../../etc", "a" * 129]) | st.text(max_size=5),
    "tenant": st.sampled_from(["t", "", ".hidden", "a/b"]),
    "width": sides,
    "height": sides,
    "seed": st.none() | longs,
    "steps": st.sampled_from([0, 1, 8, 50, 51, -1]) | ints,
    "guidance_scale": st.floats(width=32) | st.just(0.0),
    "format": st.sampled_from(["png", "webp", "jpeg", "gif", "PNG", ""]),
    "quality": st.none() | ints,
    "priority": ints | st.just(0),
    "previews": ints | st.just(0),
    "batch_id": st.none() | st.text(max_size=140),
}
# Few at a time, or hardly any request would get past the other fields.
fields = st.sets(st.sampled_from(sorted(WILD)), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: WILD[name] for name in names})
)


def tokens_of(prompt: str) -> int:
    """Count one token per word, so that a prompt within its character limit can have too many."""
    return 2 * len(prompt.split())


def can_be_made(spec: ImageSpec, allow_guidance: bool) -> bool:
    """The engine's limits, stated independently."""
    return (
        all(64 <= side <= 2048 and side % 16 == 0 for side in (spec.width, spec.height))
        and spec.width * spec.height <= MAX_PIXELS
        and 1 <= spec.steps <= 50
        and 0 <= spec.seed < 2**63
        and (0 <= spec.guidance_scale <= 20 if allow_guidance else spec.guidance_scale == 0)
        and 1 <= len(spec.prompt) <= 2_000
        and bool(spec.prompt.strip())
        and unicodedata.is_normalized("NFC", spec.prompt)
        and all(c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cs") for c in spec.prompt)
        and tokens_of(spec.prompt) <= MAX_PROMPT_TOKENS
    )


def sent(**asked: Any) -> Job:
    """A job as fetched, not decoded yet."""
    value = CODEC.encode_request(PromptRequest(**{"prompt": "a heron"} | asked), "requests")
    one = job()
    one.record, one.request = replace(one.record, value=value), None
    return one


@hyp_settings(max_examples=800, deadline=None)
@given(fields, st.booleans())
@example({"prompt": "e\u0301"}, False)
@example({"prompt": "word " * 400}, False)
def test_an_accepted_request_can_be_generated_and_a_refusal_names_the_field(
    asked: dict[str, Any], guidance: bool
) -> None:
    one = sent(**asked)
    refused = None
    try:
        Intake(CODEC, Limits(MAX_PIXELS, guidance), tokens_of).check(one)
    except RequestError as error:
        refused = error
    # A refused request stays with its job: the result names what was sent.
    assert one.request is not None
    if refused is None:
        assert can_be_made(one.spec, guidance)
    else:
        assert str(refused).startswith(f"{refused.field}: got ")


@given(st.sampled_from([64, 80, 512, 1024]), st.integers(1, 50), st.integers(0, 2**63 - 1))
def test_a_valid_request_passes_unchanged(side: int, steps: int, seed: int) -> None:
    asked = PromptRequest(prompt="一只苍鹭", width=side, height=1024, steps=steps, seed=seed)
    one = job()
    one.record = replace(one.record, value=CODEC.encode_request(asked, "requests"))
    Intake(CODEC, Limits(MAX_PIXELS, False), tokens_of).check(one)
    assert one.request == asked
    assert one.spec == ImageSpec("一只苍鹭", side, 1024, steps, 0.0, seed)


class Broken(Codec):
    """A schema with a bug in it."""

    def decode_request(self, data: bytes | None) -> PromptRequest:
        raise KeyError("type")


def test_a_bug_in_decoding_or_checking_fails_the_request_and_nothing_runs_unchecked() -> None:
    with pytest.raises(WireError, match="it cannot be read: KeyError: 'type'"):
        Intake(Broken(), Limits(), tokens_of).check(sent())

    def no_tokens(prompt: str) -> int:
        raise RuntimeError("the tokenizer is broken")

    one = sent()
    with pytest.raises(IntakeError, match="the tokenizer is broken") as caught:
        Intake(CODEC, Limits(), no_tokens).check(one)
    verdict = judge(caught.value, attempts=0, max_attempts=3)
    assert (verdict.action, verdict.deployment_fault) == (Action.DEAD_LETTER, True)
