"""The demo's pictures on one page that opens from disk."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.prompt_request import PromptRequest


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture: its request, its result, and its file beside the page."""

    request: PromptRequest
    result: ImageResult
    file: str


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #222; background: #fafafa }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1.25rem }
figure { margin: 0 } img { width: 100%; image-rendering: pixelated; border-radius: 6px }
figcaption { font-size: .85rem } small { color: #777 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } }
"""


def page(pictures: Sequence[Shown], dead_letters: Sequence[str]) -> str:
    """A complete HTML document; ``dead_letters`` are lines for people."""
    figures = "\n".join(_figure(number, shown) for number, shown in enumerate(pictures, 1))
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in dead_letters)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>zimage_stream demo</title><style>{_STYLE}</style></head><body>"
        f"<h1>zimage_stream demo: {len(pictures)} pictures</h1><main>\n{figures}\n</main>"
        f"<h2>Dead letters</h2><ul>{listed}</ul></body></html>\n"
    )


def _figure(number: int, shown: Shown) -> str:
    prompt, image = html.escape(shown.request.prompt), shown.result.image
    seed = image.seed if image else ""
    return (
        f'<figure><img src="{html.escape(shown.file)}" alt="{prompt}"><figcaption>{number}. {prompt}<br>'
        f"<small>{html.escape(shown.request.tenant)}, seed {seed}</small></figcaption></figure>"
    )
