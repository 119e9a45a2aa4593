"""A row keeps its id wherever it is in its file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from zimage_producers.produce.row_ids import RowIds
from zimage_producers.produce.rows import Row
from zimage_stream.events.rules import NAME

prompts = st.lists(st.text(max_size=20), max_size=30)


def ids_of(prompts: Sequence[str], batch: str = "spring") -> list[str]:
    with closing(RowIds(batch)) as ids:
        return [
            ids.id_of(Row(n, n, {"prompt": prompt, "width": None})) for n, prompt in enumerate(prompts, 1)
        ]


@given(prompts, st.text(max_size=150))
def test_ids_are_valid_and_unique(prompts: list[str], batch: str) -> None:
    ids = ids_of(prompts, batch)
    assert all(NAME.fullmatch(each) for each in ids)
    assert len(set(ids)) == len(ids)


@given(prompts)
def test_rows_keep_their_ids_when_reordered_and_extended(
    prompts: list[str],
) -> None:
    before = ids_of(prompts)
    again = ["a row that was inserted", *reversed(prompts)]
    assert set(before) <= set(ids_of(again))


def test_a_row_keeps_its_id_when_another_is_inserted_before_it() -> None:
    before = dict(zip("abc", ids_of("abc"), strict=True))
    after = dict(zip("axbc", ids_of("axbc"), strict=True))
    assert before.items() <= after.items()


def test_the_order_of_columns_does_not_change_an_id() -> None:
    with closing(RowIds("b")) as one, closing(RowIds("b")) as other:
        assert one.id_of(Row(1, 1, {"prompt": "a", "sku": "1"})) == other.id_of(
            Row(2, 2, {"sku": "1", "prompt": "a"})
        )


def test_another_batch_has_different_ids() -> None:
    assert not set(ids_of("abc")) & set(ids_of("abc", "autumn"))
