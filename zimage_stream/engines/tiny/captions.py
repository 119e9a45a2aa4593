"""The captions that the packaged checkpoint was trained on, which are also all that it can draw."""

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
"""Chinese names of each shape, by its English name."""

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
"""Chinese name of each colour, by its English name."""

COMBINATIONS = tuple(
    (shape, colour, background)
    for shape in SHAPES
    for colour in COLOURS
    for background in COLOURS
    if colour != background
)
"""All 336 supported images: shape, colour of the shape, colour of the background."""

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
    """Count the captions in a language of a combination with this shape."""
    return len(_ENGLISH) if language == "en" else len(_CHINESE) * len(SHAPES[shape])


def caption(shape: str, colour: str, background: str, language: Language, template_index: int) -> str:
    """Build a caption that the checkpoint was trained on.

    Args:
        shape: a key of ``SHAPES``.
        colour, background: two different keys of ``COLOURS``.
        template_index: any number from 0. It cycles through the templates (and in Chinese through the shape's
            names), with a period of :func:`variants`.
    """
    if language == "en":
        template = _ENGLISH[template_index % len(_ENGLISH)]
        text = template.format(colour=colour, shape=shape, background=background)
        return text.replace("a orange", "an orange").replace("A orange", "An orange")
    names = SHAPES[shape]
    template = _CHINESE[template_index % len(_CHINESE)]
    name = names[template_index // len(_CHINESE) % len(names)]
    return template.format(colour=COLOURS[colour], shape=name, background=COLOURS[background])
