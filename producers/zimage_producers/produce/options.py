"""Options of ``zimage produce``, under the headings that its help shows them by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **more)


_ONE, _MANY, _AFTER = "The request", "Many requests", "Afterwards"

Prompt = Annotated[str | None, typer.Argument(help="What the picture shows.", show_default=False)]

File = Annotated[str | None, _option(_MANY, "Rows of requests; - is stdin.", metavar="F.csv|.xlsx|.jsonl|-")]
InputFormat = Annotated[Literal["csv", "jsonl", "xlsx"] | None, _option(_MANY, "Else by the file's name.")]
Encoding = Annotated[str | None, _option(_MANY, "Of the file, if its bytes leave a doubt.", metavar="NAME")]
Batch = Annotated[str | None, _option(_MANY, "The batch; the same name again resumes it.")]
NameBy = Annotated[str | None, _option(_MANY, "The column that names the saved files.", metavar="COLUMN")]

RequestId = Annotated[str | None, _option(_ONE, "Else a UUIDv7.")]
Tenant = Annotated[str | None, _option(_ONE, "Who it is for; else default.")]
Width = Annotated[int | None, _option(_ONE, "In pixels; else 1024.")]
Height = Annotated[int | None, _option(_ONE, "In pixels; else 1024.")]
Seed = Annotated[int | None, _option(_ONE, "Else made from tenant and id.")]
Steps = Annotated[int | None, _option(_ONE, "Of denoising; else 8.")]
Guidance = Annotated[float | None, _option(_ONE, "0 for Turbo.", "--guidance-scale")]
ImageFormat = Annotated[str | None, _option(_ONE, "png, webp or jpeg; else png.", "--format")]
Quality = Annotated[int | None, _option(_ONE, "Of webp and jpeg, 1 to 100.")]
Priority = Annotated[int | None, _option(_ONE, "-10 to 10, within the tenant; else 0.")]
ExpiresAt = Annotated[str | None, _option(_ONE, "Not begun by then, it expires.", metavar="ISO-8601")]
Attribute = Annotated[list[str] | None, _option(_ONE, "Comes back in the result.", metavar="NAME=VALUE")]

Wait = Annotated[bool, _option(_AFTER, "Stay for the results.", "--wait")]
Out = Annotated[Path | None, _option(_AFTER, "Save the pictures here; waits.", metavar="DIR")]
Timeout = Annotated[float | None, _option(_AFTER, "Give up after such a silence.", metavar="SECONDS", min=0)]
Json = Annotated[bool, _option(_AFTER, "Print one JSON object a line.", "--json")]
