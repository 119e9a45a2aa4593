"""Options of ``zimage produce``, grouped by the headings in its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **more)


_ONE, _MANY, _AFTER = "The request", "Many requests", "Afterwards"

Prompt = Annotated[str | None, typer.Argument(help="What the image shows.", show_default=False)]

File = Annotated[str | None, _option(_MANY, "Rows of requests; - is stdin.", metavar="F.csv|.xlsx|.jsonl|-")]
InputFormat = Annotated[Literal["csv", "jsonl", "xlsx"] | None, _option(_MANY, "Default: by file name.")]
Encoding = Annotated[str | None, _option(_MANY, "File encoding, if it is ambiguous.", metavar="NAME")]
Batch = Annotated[str | None, _option(_MANY, "Batch name; reuse it to resume.")]
NameBy = Annotated[str | None, _option(_MANY, "The column that names the saved files.", metavar="COLUMN")]

RequestId = Annotated[str | None, _option(_ONE, "Default: a UUIDv7.")]
Tenant = Annotated[str | None, _option(_ONE, 'Default: "default".')]
Width = Annotated[int | None, _option(_ONE, "In pixels; default: 1024.")]
Height = Annotated[int | None, _option(_ONE, "In pixels; default: 1024.")]
Seed = Annotated[int | None, _option(_ONE, "Default: from tenant and id.")]
Steps = Annotated[int | None, _option(_ONE, "Denoising steps; default: 8.")]
Guidance = Annotated[float | None, _option(_ONE, "0 for Turbo.", "--guidance-scale")]
ImageFormat = Annotated[str | None, _option(_ONE, "png, webp or jpeg; default: png.", "--format")]
Quality = Annotated[int | None, _option(_ONE, "For webp and jpeg, 1 to 100.")]
Priority = Annotated[int | None, _option(_ONE, "Within the tenant, -10 to 10.")]
Previews = Annotated[int | None, _option(_ONE, "Sent with its progress, 0 to 3; default: 0.")]
ExpiresAt = Annotated[str | None, _option(_ONE, "Expires if not begun by then.", metavar="ISO-8601")]
Attribute = Annotated[list[str] | None, _option(_ONE, "Returned in the result.", metavar="NAME=VALUE")]

Wait = Annotated[bool, _option(_AFTER, "Wait for the results.", "--wait")]
Out = Annotated[Path | None, _option(_AFTER, "Save the images here; waits.", metavar="DIR")]
Timeout = Annotated[float | None, _option(_AFTER, "Give up after this silence.", metavar="SECONDS", min=0)]
Json = Annotated[bool, _option(_AFTER, "Print one JSON object per line.", "--json")]
