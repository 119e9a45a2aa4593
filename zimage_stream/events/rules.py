"""The rules for a request, checked by the client and again by the worker.

They are a safety feature: an out-of-range value can trigger an assertion on a CUDA device and end the whole
process, so no request reaches the engine unchecked.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from zimage_stream.errors import RequestError, UnsupportedSizeError
from zimage_stream.events.prompt_request import EXTENSIONS, PromptRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
NAME_RULE = "1 to 128 of A-Z a-z 0-9 . _ ~ -, the first a letter or digit"
FORMATS = tuple(EXTENSIONS)
MAX_PROMPT_CHARACTERS = 2_000
MAX_RECORD_BYTES = 1 << 20
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_BYTES = 8 << 10
MAX_BATCH_ID_CHARACTERS = 128
MAX_NAME_CHARACTERS = 128
"""Maximum length of a ``request_id`` or ``tenant``, as in ``NAME``."""
SIDE_STEP, MIN_SIDE, MAX_SIDE = 16, 64, 2048
MAX_STEPS = 50
MAX_SEED = 2**63 - 1
PRIORITIES = (-10, 10)
MAX_PREVIEWS = 3

_ALLOWED_CONTROLS = "\t\n\r"

_INVISIBLE_CATEGORIES = frozenset(("Cc", "Cf", "Zl", "Zp", "Zs"))
_INVISIBLE = re.compile(
    # Other characters that Unicode calls default-ignorable: joiners, fillers, variation selectors, tags.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff"
    # Blank glyphs: the empty Braille cell, hieroglyphic blanks, a Khitan filler, a null notehead.
    "\u2800\U00013441\U00013442\U00016fe4\U0001d159]"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a deployment, in addition to the fixed rules; ``max_pixels`` is width x height."""

    max_pixels: int = MAX_SIDE * MAX_SIDE
    allow_guidance: bool = False


def check_request(
    request: PromptRequest,
    limits: Limits = Limits(),
    count_tokens: Callable[[str], int | None] | None = None,
    max_tokens: int = 512,
) -> PromptRequest:
    """Check a request against all rules, and normalise its prompt to NFC.

    Args:
        request: as created or decoded.
        limits: the deployment's own limits.
        count_tokens: the model's token counter, if available; it returns ``None`` for unknown.
        max_tokens: longest prompt that the model reads without truncation.

    Returns:
        The request with its prompt in NFC.

    Raises:
        RequestError: a field breaks a rule; the error states the first such field, the rule and the value.
        UnsupportedSizeError: the size is valid but exceeds ``limits.max_pixels``.
    """
    check_name("request_id", request.request_id)
    check_name("tenant", request.tenant)
    prompt = _check_prompt(request.prompt)
    _check_size(request, limits)
    _check_int("steps", request.steps, 1, MAX_STEPS)
    if request.seed is not None:
        _check_int("seed", request.seed, 0, MAX_SEED, "; omit it to have it derived from tenant and id")
    _check_guidance(request.guidance_scale, limits)
    if request.format not in FORMATS:
        raise RequestError("format", "one of " + ", ".join(FORMATS), request.format)
    if request.quality is not None:
        _check_int("quality", request.quality, 1, 100)
    _check_int("priority", request.priority, *PRIORITIES)
    _check_int("previews", request.previews, 0, MAX_PREVIEWS)
    _check_time("expires_at", request.expires_at)
    _check_time("created_at", request.created_at)
    check_batch_id(request.batch_id)
    _check_attributes(request)
    if count_tokens is not None:
        tokens = count_tokens(prompt)
        if tokens is not None and tokens > max_tokens:
            raise RequestError("prompt", f"at most {max_tokens} tokens; this one has {tokens}", prompt)
    return request if prompt == request.prompt else replace(request, prompt=prompt)


def check_name(field: str, value: object) -> None:
    """Raise RequestError if a value is not valid as a ``request_id`` or ``tenant``."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise RequestError(field, NAME_RULE, value)


def _check_prompt(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise RequestError("prompt", "text", prompt)
    check_text("prompt", prompt)
    normal = unicodedata.normalize("NFC", prompt)
    if len(normal) > MAX_PROMPT_CHARACTERS or not any(map(_is_visible, normal)):
        rule = f"1 to {MAX_PROMPT_CHARACTERS:,} characters, at least one of them visible"
        raise RequestError("prompt", rule, prompt)
    return normal


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in _INVISIBLE_CATEGORIES and not _INVISIBLE.match(character)


def check_text(field: str, text: str) -> None:
    """Reject control characters and lone surrogates. Right-to-left marks and joiners are allowed."""
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in _ALLOWED_CONTROLS):
            what = "lone surrogates" if category == "Cs" else "control characters"
            raise RequestError(field, f"text without {what} (it contains U+{ord(character):04X})", text)


def _check_size(request: PromptRequest, limits: Limits) -> None:
    for field, side in (("width", request.width), ("height", request.height)):
        rule = f"a multiple of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}"
        if not _is_int(side) or not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP:
            raise RequestError(field, rule, side)
    pixels = request.width * request.height
    if pixels > limits.max_pixels:
        raise UnsupportedSizeError(
            "width", f"width x height of at most {limits.max_pixels:,} pixels", request.width
        )


def _check_guidance(scale: object, limits: Limits) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise RequestError("guidance_scale", "a number", scale)
    if scale != 0 and not limits.allow_guidance:
        raise RequestError(
            "guidance_scale", "0 (this model is distilled; engine.allow_guidance is off)", scale
        )
    if not 0 <= scale <= 20:
        raise RequestError("guidance_scale", "0 to 20", scale)


def check_batch_id(batch_id: object) -> None:
    """Raise RequestError if a value is neither ``None`` nor valid as a ``batch_id``."""
    if batch_id is None:
        return
    if not isinstance(batch_id, str) or not 1 <= len(batch_id) <= MAX_BATCH_ID_CHARACTERS:
        raise RequestError("batch_id", f"1 to {MAX_BATCH_ID_CHARACTERS} characters", batch_id)
    check_text("batch_id", batch_id)


def _check_attributes(request: PromptRequest) -> None:
    attributes = request.attributes
    if len(attributes) > MAX_ATTRIBUTES:
        raise RequestError("attributes", f"at most {MAX_ATTRIBUTES} entries", f"{len(attributes)} entries")
    size = 0
    for name, value in attributes.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise RequestError("attributes", "text names with text values", {name: value})
        try:
            size += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise RequestError("attributes", "text without lone surrogates", {name: value}) from None
    if size > MAX_ATTRIBUTE_BYTES:
        raise RequestError(
            "attributes", f"at most {MAX_ATTRIBUTE_BYTES:,} bytes of UTF-8 in total", f"{size:,} bytes"
        )


def _check_time(field: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise RequestError(field, "a time with a time zone", value)


def _check_int(field: str, value: object, low: int, high: int, more: str = "") -> None:
    if not _is_int(value) or not low <= value <= high:  # type: ignore[operator]
        raise RequestError(field, f"a whole number from {low} to {high}{more}", value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
