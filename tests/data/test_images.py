"""Images as they come from strangers: damaged, huge, turned, of odd modes."""

import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from mdpo.data import images
from mdpo.data.images import Inspector, StoredImage, Use, check_images, open_image
from mdpo.errors import InputError
from tests.data.pictures import encoded, noise, rows


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims width × height pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "does not decode: cannot identify"),
        (b"", "does not decode"),
        (encoded(noise(), "PNG")[:1000], "does not decode"),
        (encoded(noise(), "JPEG")[:400], "does not decode"),
        (bomb(60_000, 60_000), "more pixels than the limit of"),
        (bomb(9_000, 9_000), "9000 x 9000 pixels, above the limit"),
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
        "x" * 300: r"xx…x+ \(\d+ characters\) cannot be read",
        "imgs\\a.png": "written with backslashes, as on Windows; write / instead",
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


RAMP = np.linspace(0, 1, 64)[None].repeat(8, 0)  # from black on the left to white on the right


def ramp(dtype: str, low: float, high: float) -> np.ndarray:
    values = low + RAMP * (high - low)
    return (values.round() if np.dtype(dtype).kind in "iu" else values).astype(dtype)


PIXELS = {  # whatever numbers a picture is stored in, it shows the ramp
    "16 bits": ramp("uint16", 0, 65535),
    "16 bits, big-endian": ramp(">u2", 0, 65535),
    "12 bits in 16": ramp("uint16", 0, 4095),
    "10 bits in 16": ramp("uint16", 0, 1023),
    "8 bits in 16": ramp("uint16", 0, 255),
    "16 bits in 32": ramp("int32", 0, 65535),
    "8 bits in 32": ramp("int32", 0, 255),
    "24 bits in 32": ramp("int32", 0, 2**24),
    "signed": ramp("int32", -1000, 3000),
    "floats to 1": ramp("float32", 0, 1),
    "floats to 255": ramp("float32", 0, 255),
    "floats around 0": ramp("float32", -1, 1),
    "floats to 65535": ramp("float32", 0, 65535),
}


def in_memory(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype == np.dtype(">u2"):
        return Image.frombytes("I;16B", pixels.shape[::-1], pixels.tobytes())
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("stored", [True, False], ids=["file", "in memory"])
def test_numbers_of_any_kind_are_scaled_to_what_they_show(tmp_path, kind, stored):
    image = in_memory(PIXELS[kind])
    if stored:
        image.save(tmp_path / "ramp.tif")
        image = tmp_path / "ramp.tif"
    shown = np.asarray(open_image(image, ""))
    assert np.abs(shown.astype(float) - 255 * RAMP[..., None]).max() <= 1


def test_a_greymap_of_any_depth_is_scaled(tmp_path):
    for bits in (10, 12, 16):
        pixels = (RAMP * (2**bits - 1)).round().astype(">u2")
        (tmp_path / "a.pgm").write_bytes(b"P5\n64 8\n%d\n" % (2**bits - 1) + pixels.tobytes())
        shown = np.asarray(open_image(tmp_path / "a.pgm", ""))
        assert np.abs(shown.astype(float) - 255 * RAMP[..., None]).max() <= 1


def test_what_is_no_number_or_one_number_alone_has_a_colour():
    pixels = ramp("float32", 0, 1)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    assert np.asarray(open_image(Image.fromarray(pixels), ""))[0, :3, 0].tolist() == [0, 255, 0]
    for value in (np.nan, -7.0, 1e30):
        assert open_image(Image.fromarray(np.full((3, 3), value, dtype=np.float32)), "").mode == "RGB"


def test_a_dark_picture_stays_dark():
    for mode, dtype in (("F", "float32"), ("I", "int32")):
        pixels = ramp(dtype, 0, 40)
        shown = np.asarray(open_image(Image.fromarray(pixels, mode), ""))[..., 0]
        assert np.abs(shown - pixels).max() <= 1


def test_transparency_is_left_out_as_transformers_does():
    image = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    assert open_image(image, "").getpixel((0, 0)) == load_image(image).getpixel((0, 0)) == (10, 200, 30)
    for mode in ("La", "RGBa"):
        assert open_image(Image.new(mode, (4, 4)), "").mode == "RGB"


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
