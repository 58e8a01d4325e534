"""Images as they come from strangers: damaged, huge, turned, of odd modes."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mdpo.data import images, parse_rows
from mdpo.data.images import Inspector, StoredImage, Use, check_images, open_image
from mdpo.errors import InputError


def noise(height: int = 40, width: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims width × height pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def rows(folder: Path, *names: str) -> list:
    return parse_rows([{"img_path": n, "prompt": "q?", "chosen": "a", "rejected": "b"} for n in names], folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "does not decode: cannot identify"),
        (b"", "does not decode"),
        (encoded(noise(), "PNG")[:1000], "does not decode"),
        (encoded(noise(), "JPEG")[:400], "does not decode"),
        (bomb(60_000, 60_000), "more pixels than the limit of"),
        (bomb(9_000, 9_000), "9000 × 9000 pixels, above the limit"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "does not decode"),
        (encoded(noise(), "TGA"), "does not decode"),
    ],
    ids=["text", "empty", "cut PNG", "cut JPEG", "bomb", "large", "PostScript", "unlisted format"],
)
def test_bad_files_are_named_with_their_row(tmp_path, content, message):
    (tmp_path / "good.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=f"dataset, row 1: images: image .*bad.png .*({message})"):
        check_images(rows(tmp_path, "good.png", "bad.png"))


def test_missing_files_and_things_that_are_no_files(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    cases = {
        "gone.png": "does not exist",
        "folder": "is not a file",
        "pipe": "is not a file",
        "file/a": "does not exist",
        "x" * 300: "cannot be read",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=f"row 0: images: .*{message}"):
            check_images(rows(tmp_path, name))


def test_a_file_of_too_many_bytes(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="above the limit"):
        check_images(rows(tmp_path, "a.png"))


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    noise().save(tmp_path / "a.jpg", exif=exif)
    ((facts,),) = check_images(rows(tmp_path, "a.jpg"))
    assert (facts.height, facts.width) == (36, 40)
    plain = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.jpg", "")), np.rot90(plain, 3))


def test_every_mode_becomes_rgb():
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F"):
        assert open_image(noise().convert("L").convert(mode), "here").mode == "RGB", mode


def test_sixteen_bits_are_scaled_not_clipped():
    image = Image.fromarray((np.arange(256, dtype=np.uint16) * 256).reshape(16, 16))
    assert np.asarray(open_image(image, ""))[..., 0].tolist() == np.arange(256).reshape(16, 16).tolist()


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(StoredImage("a.gif", lambda: data), "").getpixel((0, 0)) == (255, 0, 0)


def test_all_bad_images_are_found_and_a_file_is_decoded_once(tmp_path, monkeypatch):
    (tmp_path / "good.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "bad.png").write_bytes(b"no")
    opened = []
    decode = images._inspect
    monkeypatch.setattr(images, "_inspect", lambda use: (opened.append(use.source.name), decode(use))[1])
    names = ["good.png", "bad.png", "good.png", "bad.png"]
    uses = [Use(tmp_path / name, f"row {index}", "images") for index, name in enumerate(names)]
    with Inspector() as inspector:
        found = inspector.inspect(uses[:3]) + inspector.inspect(uses[3:])
    assert sorted(opened) == ["bad.png", "good.png"]
    assert [getattr(item, "where", "good") for item in found] == ["good", "row 1", "good", "row 3"]


SOURCES = {format: encoded(noise(12, 10), format) for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(SOURCES)),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 2_000),
)
def test_no_bytes_end_in_anything_but_an_image_or_an_input_error(format, changes, end):
    data = bytearray(SOURCES[format])
    for position, value in changes:
        data[position % len(data)] = value
    try:
        image = open_image(StoredImage("x", lambda: bytes(data[: max(end, 1)])), "row 0")
    except InputError as error:
        assert str(error).startswith("row 0: images: image x ")
    else:
        assert image.mode == "RGB"
