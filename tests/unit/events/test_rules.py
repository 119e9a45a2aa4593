"""The rules for requests: what may reach a GPU, and a clear message for everything else."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_stream.errors import RequestError, UnsupportedSizeError
from zimage_stream.events.prompt_request import PromptRequest, new_request_id
from zimage_stream.events.rules import Limits, check_request

GOOD = PromptRequest(prompt="a lighthouse")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "../a"),
        ("request_id", ""),
        ("request_id", ".hidden"),
        ("request_id", "a" * 129),
        ("request_id", "a/b"),
        ("request_id", "a\n"),
        ("tenant", "a b"),
        ("tenant", "租户"),
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", "a\0b"),
        ("prompt", "a\x1bb"),
        ("prompt", "\ud800"),
        ("prompt", "a" * 2_001),
        ("width", 63),
        ("width", 72),
        ("width", 2_064),
        ("height", -64),
        ("width", 64.0),
        ("width", True),
        ("seed", -1),
        ("seed", 2**63),
        ("steps", 0),
        ("steps", 51),
        ("guidance_scale", 1.0),
        ("guidance_scale", float("nan")),
        ("format", "gif"),
        ("format", "PNG"),
        ("quality", 0),
        ("quality", 101),
        ("priority", 11),
        ("previews", -1),
        ("previews", 4),
        ("previews", True),
        ("expires_at", datetime(2026, 1, 1)),  # noqa: DTZ001
        ("batch_id", ""),
        ("batch_id", "b" * 129),
        ("attributes", {str(i): "" for i in range(33)}),
        ("attributes", {"a": "b" * 8_192}),
        ("attributes", {"a": 1}),
    ],
)
def test_a_broken_rule_names_field_rule_and_value(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{field}: got .*, takes ") as caught:
        check_request(replace(GOOD, **{field: value}))
    assert caught.value.field == field
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "prompt",
    [
        "红色的灯塔",
        "منارة في الضباب",
        "\u200fמגדלור\u200e",
        "🏴\u200d☠️ flag",
        "e\u0301",
        "tab\tand\nlines\r\n",
        "a" * 2_000,
    ],
)
def test_text_in_any_script_is_accepted(prompt: str) -> None:
    checked = check_request(replace(GOOD, prompt=prompt))
    assert checked.prompt == unicodedata.normalize("NFC", prompt)


# Written as code points, since they are invisible in an editor.
INVISIBLE = [
    *"\u00ad\u034f\u061c\u115f\u1160\u17b4\u180e\u200b\u200d\u2060\u2800\u3000\u3164\ufe0f\ufeff\uffa0",
    *"\u00a0\u2028\U00013441\U0001d159\U000e0041\U000e0100",
    "\u200b\u200d\u2060",
    " \u200f\n\u3164\t",
]


@pytest.mark.parametrize("prompt", INVISIBLE, ids=ascii)
def test_an_invisible_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(RequestError, match=r"^prompt: got .* at least one of them visible"):
        check_request(replace(GOOD, prompt=prompt))
    assert check_request(replace(GOOD, prompt=f"{prompt}a")).prompt.endswith("a")


@pytest.mark.parametrize(
    "prompt", ["👩\u200d👩\u200d👧\u200d👦", "☠\ufe0f", "1\ufe0f\u20e3", "\ue000", "。", "\u0301"]
)
def test_one_visible_character_is_a_prompt(prompt: str) -> None:
    assert check_request(replace(GOOD, prompt=prompt)).prompt == unicodedata.normalize("NFC", prompt)


@given(
    st.integers(4, 128).map(lambda n: 16 * n),
    st.integers(4, 128).map(lambda n: 16 * n),
    st.integers(0, 2**63 - 1),
    st.integers(1, 50),
)
def test_every_value_within_the_rules_passes(width: int, height: int, seed: int, steps: int) -> None:
    request = replace(GOOD, width=width, height=height, seed=seed, steps=steps)
    assert check_request(request) == request


def test_limits_can_be_configured() -> None:
    with pytest.raises(UnsupportedSizeError, match="1,048,576 pixels"):
        check_request(replace(GOOD, width=2048, height=1024), Limits(max_pixels=1024 * 1024))
    assert check_request(replace(GOOD, guidance_scale=4.0), Limits(allow_guidance=True))


def test_a_prompt_that_the_model_would_truncate_is_refused() -> None:
    with pytest.raises(RequestError, match="at most 512 tokens; this one has 513"):
        check_request(GOOD, count_tokens=lambda _: 513)
    assert check_request(GOOD, count_tokens=lambda _: 512) == GOOD
    assert check_request(GOOD, count_tokens=lambda _: None) == GOOD


class TestDerivedValues:
    @given(st.text(), st.text())
    def test_the_seed_is_deterministic_and_fits_a_javascript_number(self, tenant: str, name: str) -> None:
        try:
            request = PromptRequest(prompt="p", tenant=tenant, request_id=name)
            seed = request.chosen_seed
        except UnicodeEncodeError:
            return
        assert 0 <= seed < 2**53
        assert replace(request, prompt="q").chosen_seed == seed

    def test_the_digest_covers_exactly_what_determines_the_image(self) -> None:
        digest = GOOD.parameter_digest
        for same in ({"priority": 3}, {"attributes": {"a": "b"}}, {"batch_id": "b"}, {"previews": 3}):
            assert replace(GOOD, **same).parameter_digest == digest
        for other in ({"prompt": "x"}, {"seed": 1}, {"steps": 4}, {"width": 512}, {"format": "webp"}):
            assert replace(GOOD, **other).parameter_digest != digest

    def test_the_digest_of_a_request_never_changes_with_our_version(self) -> None:
        # A request that is sent again must find the image that an earlier version stored.
        old = PromptRequest(prompt="a lighthouse", request_id="r", tenant="t", format="webp", quality=80)
        assert old.parameter_digest == "ba89f7d09f87b7ecf011f0a8a8e0035c2793aff49572f87addaf99fb182dbc6e"

    def test_ids_are_version_7_uuids_in_order_of_time(self) -> None:
        ids = [new_request_id() for _ in range(50)]
        assert len(set(ids)) == 50
        assert {name[14] for name in ids} == {"7"}
        assert [name[:13] for name in ids] == sorted(name[:13] for name in ids)
        assert check_request(replace(GOOD, request_id=ids[0]))
