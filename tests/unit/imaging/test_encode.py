"""Encoded images: the pixels and fields that went in come out again."""

from __future__ import annotations

import io
import random
import struct
import sys
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from zimage_stream.imaging import encode, read_text

FORMATS = ("png", "webp", "jpeg")
FIELDS = {
    "prompt": "画一个红色圆形，背景是<白色> & \"黑色\"\r\nsecond line\t'end' 🎨",
    "seed": "9007199254740991",
    "size": "64x64",
}

# What the rules for requests allow: no surrogates, and no control characters except tab and line breaks.
prompts = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs", "Cc")),
        st.sampled_from("\t\n\r"),
        st.sampled_from("<>&\"']]>"),
    ),
    max_size=200,
)


def picture(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth image, which lossy formats hardly change."""
    red = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (red, red.rotate(180), Image.radial_gradient("L").resize(size)))


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize(
    ("format_", "content_type", "extension"),
    [("png", "image/png", "png"), ("webp", "image/webp", "webp"), ("jpeg", "image/jpeg", "jpg")],
)
def test_a_file_has_the_requested_format(format_: str, content_type: str, extension: str) -> None:
    encoded = encode(picture(), format_, None, FIELDS)
    assert (encoded.content_type, encoded.extension) == (content_type, extension)
    with Image.open(io.BytesIO(encoded.data)) as image:
        assert image.get_format_mimetype() == content_type
        assert image.size == (64, 48)


@pytest.mark.parametrize("format_", ["png", "webp"])
def test_without_a_quality_no_pixel_changes(format_: str) -> None:
    assert decoded(encode(picture(), format_, None, FIELDS).data).tobytes() == picture().tobytes()


@pytest.mark.parametrize("missing", [None, "isal", "numpy"])
@given(data=st.data())
def test_a_png_is_well_formed_and_keeps_its_pixels(missing: str | None, data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    pixels = data.draw(st.binary(min_size=3 * size[0] * size[1], max_size=3 * size[0] * size[1]))
    image = Image.frombytes("RGB", size, pixels)
    with pytest.MonkeyPatch.context() as patch:
        if missing is not None:
            # As without the extra "worker".
            patch.delitem(sys.modules, "zimage_stream.imaging.idat", raising=False)
            patch.setitem(sys.modules, missing, None)
        encoded = encode(image, "png", None, FIELDS).data
    assert decoded(encoded).tobytes() == pixels
    kinds = [kind for kind, _ in chunks(encoded)]
    assert kinds == [b"IHDR", b"iTXt", b"iTXt", b"iTXt", b"IDAT", b"IEND"]
    rows = zlib.decompress(dict(chunks(encoded))[b"IDAT"])
    assert len(rows) == size[1] * (1 + 3 * size[0])


@pytest.mark.parametrize("size", [(1024, 1024), (700, 501), (64, 2048), (2048, 175)])
def test_a_large_png_is_a_single_stream(size: tuple[int, int]) -> None:
    noise = Image.frombytes("RGB", size, random.Random(1).randbytes(3 * size[0] * size[1]))
    for image in (picture(size), noise):
        encoded = encode(image, "png", None, FIELDS).data
        assert decoded(encoded).tobytes() == image.tobytes()
        stream = zlib.decompressobj()
        assert len(stream.decompress(dict(chunks(encoded))[b"IDAT"])) == size[1] * (1 + 3 * size[0])
        assert stream.eof
        assert not stream.unused_data


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, with their checksums verified."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    out, at = [], 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        out.append((kind, body))
        at += 12 + length
    return out


def test_png_ignores_quality() -> None:
    assert encode(picture(), "png", 1, FIELDS) == encode(picture(), "png", None, FIELDS)


@pytest.mark.parametrize("format_", ["webp", "jpeg"])
def test_quality_trades_bytes_for_fidelity(format_: str) -> None:
    low, high = (encode(picture((256, 256)), format_, quality, {}).data for quality in (10, 95))
    assert len(low) < len(high)
    difference = ImageChops.difference(decoded(high), picture((256, 256)))
    assert max(high for _, high in difference.getextrema()) < 24  # type: ignore[misc]


def test_jpeg_quality_is_95_by_default() -> None:
    assert encode(picture(), "jpeg", None, {}) == encode(picture(), "jpeg", 95, {})


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("fields", [FIELDS, {}])
def test_an_image_contains_the_fields_needed_to_reproduce_it(format_: str, fields: dict[str, str]) -> None:
    assert read_text(encode(picture(), format_, None, fields).data) == fields


@pytest.mark.parametrize("format_", FORMATS)
@given(prompt=prompts)
@example("a\ufffeb\uffffc")
def test_any_prompt_is_read_back(format_: str, prompt: str) -> None:
    data = encode(picture((16, 16)), format_, None, {"prompt": prompt, "seed": "1"}).data
    # XML cannot represent these two; everything else is exact.
    expected = prompt if format_ == "png" else prompt.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
    assert read_text(data) == {"prompt": expected, "seed": "1"}


@pytest.mark.parametrize("format_", FORMATS)
def test_the_longest_prompt_fits(format_: str) -> None:
    prompt = "\r&🎨" * 666
    assert read_text(encode(picture(), format_, None, {"prompt": prompt}).data) == {"prompt": prompt}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_foreign_image_has_no_fields(format_: str) -> None:
    out = io.BytesIO()
    picture().save(out, format_)
    assert read_text(out.getvalue()) == {}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'tiff', takes png, webp or jpeg"):
        encode(picture(), "tiff", None, {})
