"""What a picture says of itself, written and read."""

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
    """The fields as an XMP packet.

    A character that XML has no way to write (U+FFFE, controls) becomes U+FFFD.

    Args:
        text: values by name; a name is one of XML: letters, digits and ``_``, no digit first.
    """
    root = ElementTree.Element(f"{{{_META}}}xmpmeta")
    description = ElementTree.SubElement(
        ElementTree.SubElement(root, f"{{{_RDF}}}RDF"), f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""}
    )
    for name, value in text.items():
        ElementTree.SubElement(description, f"{{{_OURS}}}{name}").text = _NOT_XML.sub("\ufffd", value)
    body: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=False)
    # A parser reads a bare carriage return as a line feed; as a reference it stays what it is.
    body = body.replace(b"\r", b"&#13;")
    return b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>' + body + b'<?xpacket end="r"?>'


def read_text(data: bytes) -> dict[str, str]:
    """The fields that :func:`~zimage_stream.imaging.encode` put into a picture, whatever its format.

    Args:
        data: a PNG, WebP or JPEG file.

    Returns:
        Values by name; empty where the picture says nothing of itself.

    Raises:
        ValueError: it is no such file.
    """
    try:
        return _read(data)
    except Exception as error:
        # Damaged bytes surface as almost any exception, a decompression bomb as one of its own.
        raise ValueError(f"it is no picture that can be read: {error}") from error


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
