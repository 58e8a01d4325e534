"""What a picture may cost, and where its path may lead, whoever made it."""

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import pytest
from PIL import Image

from mdpo.data import images, picture_memory
from mdpo.data.images import StoredImage, check_images, open_image
from mdpo.data.picture_memory import ROOM, decoding_bytes, webp_size
from mdpo.errors import InputError
from tests.data.pictures import encoded, noise, rows


def stored(data: bytes) -> StoredImage:
    return StoredImage("x", lambda: data)


def webp(width: int, height: int, kind: bytes = b"VP8L") -> bytes:
    """A WebP of 30 bytes that claims width × height pixels."""
    if kind == b"VP8L":
        body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(9)
    else:
        body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "data",
    [webp(8192, 8192), webp(16_383, 4096), webp(8192, 8192, b"VP8X"), png(1, 2**26), png(2**26, 1)[:200]],
    ids=["WebP", "wide WebP", "extended WebP", "PNG of one column", "PNG of one row"],
)
def test_what_a_picture_claims_to_cost_is_refused_before_anything_is_allocated(data, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    if data[:4] == b"RIFF":
        monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("it was opened"))
    else:
        monkeypatch.setattr(images, "MAX_MEMORY", 2**28)
    with pytest.raises(
        InputError, match=r"row 0: images: image x takes \d+ MiB to decode, above the limit of \d+; shrink it"
    ):
        open_image(stored(data), "row 0")


def test_the_size_of_a_webp_is_read_from_its_header():
    for options in ({}, {"lossless": True}, {"exif": Image.Exif().tobytes(), "quality": 10}):
        assert webp_size(encoded(noise(40, 36), "WEBP", **options)[:30]) == (36, 40)
    assert webp_size(encoded(noise(), "PNG")[:30]) is None and webp_size(b"RIFF") is None


def test_the_cost_counts_what_decoders_keep():
    def cost(format: str, **options) -> int:
        image = Image.open(io.BytesIO(encoded(noise(64, 64), format, **options)))
        return decoding_bytes(image, 0) // 64**2

    plain = cost("PNG")
    assert plain >= 8 and cost("WEBP") >= plain + 12 and cost("JPEG", progressive=True) >= plain + 6
    wide = Image.new("I;16", (64, 64))
    assert decoding_bytes(wide, 0) // 64**2 >= plain + 20
    assert decoding_bytes(Image.new("L", (1, 4096)), 0) >= 4096 * 24, "an address a line"


def test_threads_wait_for_room(monkeypatch):
    monkeypatch.setattr(picture_memory, "MAX_MEMORY", 100)
    inside, most, lock = [], [], threading.Lock()

    def one() -> None:
        with ROOM.taken(40):
            with lock:
                inside.append(1)
                most.append(len(inside))
            threading.Event().wait(0.02)
            with lock:
                inside.pop()

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert max(most) == 2 and len(most) == 8
    with ROOM.taken(1000):  # by itself, one that is too large for a changed limit still comes through
        pass


def test_a_link_swapped_in_after_the_check_is_not_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "folder").mkdir(parents=True)
    outside.mkdir()
    for place in (root / "a.png", root / "folder" / "b.png", outside / "b.png", outside / "a.png"):
        place.write_bytes(encoded(noise(), "PNG"))
    checked = rows(root, "a.png", "folder/b.png")
    check_images(checked)
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(outside / "a.png")
    (root / "folder" / "b.png").unlink()
    (root / "folder").rmdir()
    (root / "folder").symlink_to(outside)
    for row in checked:
        with pytest.raises(InputError, match=r"images: image .*(a|b).png leads through a symbolic link; give the path"):
            open_image(row.images[0], row.where)


def test_a_pipe_swapped_in_is_no_hang(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    (row,) = rows(tmp_path, "a.png")
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png is not a file"):
        open_image(row.images[0], row.where)


def test_folders_above_may_be_links_when_the_rows_are_read(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_images(rows(tmp_path / "link", "a.png"))
    monkeypatch.chdir(tmp_path)
    assert open_image(Path("link/a.png"), "").size == (36, 40), "a path of one's own, relative"


def test_postscript_never_reaches_ghostscript_not_even_opened_by_somebody_else(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(InputError, match="cannot identify it as BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"):
        open_image(stored(script), "row 0")
    with pytest.raises(InputError, match="does not decode"):
        open_image(Image.open(io.BytesIO(script)), "row 0")
