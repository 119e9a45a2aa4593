"""The requests of the demo: captions that the packaged checkpoint was trained on, from two tenants."""

from __future__ import annotations

from zimage_stream.events.prompt_request import PromptRequest

SIDE = 64
"""Width and height of the images, in pixels; the packaged checkpoint supports no other size."""

ENGLISH = (
    "a red circle on a white background",
    "a blue square on a yellow background",
    "a green triangle on a black background",
    "a yellow star on a blue background",
    "a purple heart on a white background",
    "a black cross on an orange background",
    "an image of a white star on a red background",
    "orange heart on green background",
    "a purple background with a white circle",
    "one green cross in front of a yellow background",
    "draw a blue triangle on a white background",
    "a red square, black background",
)
CHINESE = (
    "白色背景上的红色圆形",
    "黄色背景上有一个蓝色正方形",
    "一个绿色的三角形，背景是黑色",
    "黄色星形，蓝色背景",
    "紫色的心形在白色的背景上",
    "画一个黑色十字形，橙色背景",
    "红色背景，白色五角星",
    "绿色背景上的橙色爱心",
    "紫色背景上有一个白色圆",
    "一个绿色的十字，背景是黄色",
    "蓝色三角形，白色背景",
    "一张图片：黑色背景上的一个红色方块",
)
POISON = b"these bytes are not an Avro event"


def requests() -> list[PromptRequest]:
    """Build 24 requests, alternately English and Chinese, with one tenant per language."""
    return [
        PromptRequest(prompt=prompt, tenant=tenant, width=SIDE, height=SIDE)
        for pair in zip(ENGLISH, CHINESE, strict=True)
        for tenant, prompt in zip(("studio", "gongfang"), pair, strict=True)
    ]
