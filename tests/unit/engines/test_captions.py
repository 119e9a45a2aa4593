"""The prompts that the packaged checkpoint understands."""

from __future__ import annotations

import pytest

from zimage_stream.engines.tiny.captions import COLOURS, COMBINATIONS, Language, caption, variants


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_of_a_combination_differ_until_they_repeat(language: Language) -> None:
    for shape, colour, background in COMBINATIONS:
        count = variants(shape, language)
        captions = [caption(shape, colour, background, language, index) for index in range(count)]
        assert len(set(captions)) == count
        assert caption(shape, colour, background, language, count) == captions[0]


def test_a_caption_names_its_combination() -> None:
    for shape, colour, background in COMBINATIONS:
        english = caption(shape, colour, background, "en", 0)
        chinese = caption(shape, colour, background, "zh", 0)
        assert {shape, colour, background} <= set(english.split())
        assert COLOURS[colour] in chinese
        assert COLOURS[background] in chinese


def test_orange_gets_the_article_an() -> None:
    assert caption("star", "orange", "red", "en", 0) == "an orange star on a red background"
    assert caption("star", "red", "orange", "en", 0) == "a red star on an orange background"
