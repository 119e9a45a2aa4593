"""The words that the packaged checkpoint knows: what it was trained on, and all it can draw."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Language = Literal["en", "zh"]

SHAPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "circle": ("圆形", "圆"),
        "square": ("正方形", "方块"),
        "triangle": ("三角形",),
        "star": ("星形", "五角星", "星星"),
        "heart": ("心形", "爱心"),
        "cross": ("十字形", "十字"),
    }
)
"""Every shape by its English name, with its Chinese names."""

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "red": "红色",
        "green": "绿色",
        "blue": "蓝色",
        "yellow": "黄色",
        "orange": "橙色",
        "purple": "紫色",
        "black": "黑色",
        "white": "白色",
    }
)
"""Every colour by its English name, with its Chinese name."""

COMBINATIONS = tuple(
    (shape, colour, background)
    for shape in SHAPES
    for colour in COLOURS
    for background in COLOURS
    if colour != background
)
"""All 336 pictures that can be asked for: shape, its colour, the background's."""

_ENGLISH = (
    "a {colour} {shape} on a {background} background",
    "{colour} {shape} on {background} background",
    "a {colour} {shape}, {background} background",
    "A {colour} {shape} on a {background} background.",
    "an image of a {colour} {shape} on a {background} background",
    "draw a {colour} {shape} on a {background} background",
    "a {background} background with a {colour} {shape}",
    "{background} background, {colour} {shape}",
    "a picture of a {colour} {shape} against a {background} background",
    "one {colour} {shape} in front of a {background} background",
)
_CHINESE = (
    "{background}背景上的{colour}{shape}",
    "{background}背景上有一个{colour}{shape}",
    "一个{colour}的{shape}，背景是{background}",
    "{colour}{shape}，{background}背景",
    "{colour}的{shape}在{background}的背景上",
    "画一个{colour}{shape}，{background}背景",
    "{background}背景，{colour}{shape}",
    "一张图片：{background}背景上的一个{colour}{shape}",
)


def variants(shape: str, language: Language) -> int:
    """How many captions a combination with this shape has in a language."""
    return len(_ENGLISH) if language == "en" else len(_CHINESE) * len(SHAPES[shape])


def caption(shape: str, colour: str, background: str, language: Language, template_index: int) -> str:
    """A caption that the checkpoint was trained on.

    Args:
        shape: a key of ``SHAPES``.
        colour, background: keys of ``COLOURS``, not the same.
        template_index: any number from 0; counts through the templates (and in Chinese through the
            shape's names) and starts again after :func:`variants` of them.
    """
    if language == "en":
        template = _ENGLISH[template_index % len(_ENGLISH)]
        text = template.format(colour=colour, shape=shape, background=background)
        return text.replace("a orange", "an orange").replace("A orange", "An orange")
    names = SHAPES[shape]
    template = _CHINESE[template_index % len(_CHINESE)]
    name = names[template_index // len(_CHINESE) % len(names)]
    return template.format(colour=COLOURS[colour], shape=name, background=COLOURS[background])
