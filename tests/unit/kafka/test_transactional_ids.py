"""The transactional id differs between users, and is covered by permissions on its prefix."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from zimage_stream.kafka.clients import transactional_id
from zimage_stream.settings import KafkaSettings

words = st.text(st.sampled_from("ab-@.10/"), max_size=6)
users = st.tuples(words, st.lists(words, min_size=2, max_size=3).map(tuple))


def id_of(prefix: str, names: tuple[str, ...]) -> str:
    return transactional_id(KafkaSettings(transactional_id_prefix=prefix), *names)


@given(users, users)
@example(("zimage", ("prod", "eu-x")), ("zimage", ("prod-eu", "x")))
@example(("zimage", ("a-b", "c")), ("zimage-a", ("b", "c")))
@example(("zimage", ("g", "dead-letters-replay")), ("zimage", ("g", "dead-letters", "replay")))
def test_only_the_same_user_gets_the_same_id(
    one: tuple[str, tuple[str, ...]], other: tuple[str, tuple[str, ...]]
) -> None:
    assert (id_of(*one) == id_of(*other)) == (one == other)


@given(users)
def test_permissions_on_the_prefix_cover_the_id(user: tuple[str, tuple[str, ...]]) -> None:
    prefix, names = user
    assert id_of(prefix, names).startswith(f"{prefix}-{names[0]}-")


def test_a_restarted_worker_has_the_same_id() -> None:
    assert transactional_id(KafkaSettings(), "zimage-workers", "gpu-1/cuda/0") == (
        "zimage-zimage-workers-gpu-1/cuda/0@6.14"
    )
