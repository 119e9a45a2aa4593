"""What all peers do for a request: nothing. Imported where only a peer's own packages are, too."""

from __future__ import annotations

from typing import Any


def work(request: dict[str, Any]) -> dict[str, Any]:
    """A result as large as a real one of the kind would be."""
    name = request["request_id"]
    return {
        "request_id": name,
        "status": "SUCCEEDED",
        "uri": f"s3://pictures/default/{name}.png",
        "width": request["width"],
        "height": request["height"],
        "seed": request["seed"],
    }
