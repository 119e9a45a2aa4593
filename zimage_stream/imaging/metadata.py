"""Metadata in images: written as XMP, read from every format. PNG chunks are written in ``encode``."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree

from PIL import Image, PngImagePlugin

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META = "adobe:ns:meta/"
_OURS = "urn:zimage-stream:picture:"
_NOT_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ElementTree.register_namespace("x", _META)
ElementTree.register_namespace("rdf", _RDF)
ElementTree.register_namespace("zimage", _OURS)


def to_xmp(text: Mapping[str, str]) -> bytes:
    """Encode fields as an XMP packet.

    Characters that XML cannot represent (U+FFFE, control characters) become U+FFFD.

    Args:
        text: values by name; a name consists of letters, digits and ``_``, and does not start with a digit.
    """
    root = ElementTree.Element(f"{{{_META}}}xmpmeta")
    description = ElementTree.SubElement(
        ElementTree.SubElement(root, f"{{{_RDF}}}RDF"), f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""}
    )
    for name, value in text.items():
        ElementTree.SubElement(description, f"{{{_OURS}}}{name}").text = _NOT_XML.sub("\ufffd", value)
    body: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=False)
    # XML parsers convert a bare carriage return to a line feed, but keep a character reference.
    body = body.replace(b"\r", b"&#13;")
    return b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>' + body + b'<?xpacket end="r"?>'


def read_text(data: bytes) -> dict[str, str]:
    """Read the fields that :func:`~zimage_stream.imaging.encode` embedded in an image of any format.

    Args:
        data: contents of a PNG, WebP or JPEG file.

    Returns:
        Values by name; empty if the image has no such metadata.

    Raises:
        ValueError: the data are not such a file.
    """
    try:
        return _read(data)
    except Exception as error:
        # Damaged bytes cause almost any exception, a decompression bomb one of its own.
        raise ValueError(f"the image cannot be read: {error}") from error


def _read(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as image:
        if isinstance(image, PngImagePlugin.PngImageFile):
            return {name: str(value) for name, value in image.text.items()}
        packet = image.info.get("xmp", b"")
    if not packet:
        return {}
    prefix = f"{{{_OURS}}}"
    elements = ElementTree.fromstring(packet).iter()
    return {e.tag.removeprefix(prefix): e.text or "" for e in elements if e.tag.startswith(prefix)}
