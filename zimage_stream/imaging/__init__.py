"""Image files: encoding, embedded metadata, contact sheets."""

from zimage_stream.imaging.encode import Encoded, encode
from zimage_stream.imaging.metadata import read_text
from zimage_stream.imaging.sheet import contact_sheet

__all__ = ["Encoded", "contact_sheet", "encode", "read_text"]
