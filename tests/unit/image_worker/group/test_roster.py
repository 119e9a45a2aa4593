"""Whether a process is alive follows from the group's members."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.image_worker.group.roster import (
    GRACE_S,
    Fate,
    draw_nonce,
    fate_of,
)
from zimage_stream.kafka.members import member_name, slot_of


@given(st.text(max_size=40))
def test_a_members_name_contains_its_slot_and_its_nonce(slot: str) -> None:
    nonce = draw_nonce(slot)
    assert 0 < nonce < 2**32
    assert slot_of(member_name(slot, nonce)) == slot
    assert fate_of(nonce, [member_name(slot, nonce)], GRACE_S) is Fate.ALIVE


@given(st.text(max_size=40).filter(lambda name: "#" not in name))
def test_a_foreign_members_name_is_left_unchanged(name: str) -> None:
    assert slot_of(name) == name


def test_a_process_whose_slot_has_a_successor_is_dead_at_once() -> None:
    slot = "gpu-1/cuda/0"
    owner = draw_nonce(slot)
    successor = owner ^ 1 if owner & 0xFFFF != 1 else owner + 1
    assert fate_of(owner, [member_name(slot, successor)], 0.0) is Fate.DEAD


@pytest.mark.parametrize("members", [[], ["a-tool", "gpu-2/cuda/0"], [member_name("gpu-2/cuda/0", 5)]])
def test_a_process_missing_from_the_group_gets_time_to_return(members: list[str]) -> None:
    owner = draw_nonce("gpu-1/cuda/0")
    assert fate_of(owner, members, 0.0) is Fate.UNKNOWN
    assert fate_of(owner, members, GRACE_S) is Fate.DEAD
