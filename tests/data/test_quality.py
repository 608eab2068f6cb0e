"""Image files of every mode, and those that are none."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from audit.data.decode import decode_image
from audit.data.quality import fingerprint, inspect_images, same_content
from audit.data.sources import FileSource, safe_key
from audit.errors import DataError
from audit.records import LeftOut
from tests.data.faces import write_images

pytestmark = pytest.mark.unit


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(content: bytes) -> tuple[int, ...]:
    image = decode_image("a", content)
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_every_mode_becomes_rgb_with_the_colour_it_shows() -> None:
    size = (9, 8)
    palette = Image.new("RGB", size, (200, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    clear = Image.new("RGBA", size, (0, 0, 0, 0))
    half = Image.new("LA", size, (0, 128))
    assert pixel(encoded(Image.new("L", size, 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", size, 1))) == (255, 255, 255)
    assert pixel(encoded(palette)) == (200, 0, 0)
    assert pixel(encoded(clear)) == (255, 255, 255)
    assert pixel(encoded(half)) == (127, 127, 127)
    assert pixel(encoded(Image.new("CMYK", size, (0, 0, 0, 0)), "JPEG")) == (255, 255, 255)
    deep = Image.fromarray(np.full((8, 9), 65535 // 2, dtype=np.uint16))
    assert pixel(encoded(deep)) == (127, 127, 127)
    assert pixel(encoded(Image.fromarray(np.full((8, 9), 70000, dtype=np.int32)), "TIFF")) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_image("a", encoded(image, "JPEG", exif=exif)).size == (20, 10)


def bomb() -> bytes:
    """Return a PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD = {
    "1x1": (encoded(Image.new("RGB", (1, 1))), "under 8 px on a side (1x1 px)"),
    "thin": (encoded(Image.new("RGB", (100, 7))), "under 8 px on a side (100x7 px)"),
    "empty": (b"", "not an image"),
    "text": (b"hello", "not an image"),
    "truncated": (encoded(Image.effect_noise((64, 64), 50))[:-600], "damaged or truncated image"),
    "bomb": (bomb(), "over 50,000,000 pixels"),
    "large": (encoded(Image.new("1", (8000, 7000))), "over 50,000,000 pixels (8000x7000 px)"),
    "float": (encoded(Image.new("F", (9, 9), 1.5), "TIFF"), "pixels out of range (not in [0, 1])"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.parametrize(("content", "what"), BAD.values(), ids=BAD.keys())
def test_what_is_no_usable_image_says_so(content: bytes, what: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_image("a.png", content)
    assert caught.value.what == what
    assert str(caught.value).startswith("a.png: ")
    assert caught.value.fix


def test_a_source_opens_only_below_its_root(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    (inside / "a.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    source = FileSource(inside)
    assert source.open("a.png").size == (9, 9)
    for key in ("../secret.png", str(tmp_path / "secret.png"), "none.png"):
        with pytest.raises(DataError):
            source.open(key)
    assert safe_key(".\\b\\.\\a.png", "t") == "b/a.png"


def test_a_link_leads_out_of_the_root_only_where_it_may(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (9, 9)))
    for folder in ("outside/deep", "real/images"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(content)
    root = tmp_path / "root"
    root.symlink_to(tmp_path / "real")  # the card's own path may be a link
    (root / "file.png").symlink_to(tmp_path / "outside" / "deep" / "a.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "inside.png").symlink_to(Path("images") / "a.png")
    (root / "circle.png").symlink_to("circle.png")
    assert FileSource(root).read("images/a.png") == FileSource(root).read("inside.png") == content
    for key in ("file.png", "folder/deep/a.png"):
        with pytest.raises(DataError, match=r"link out of its folder; copy the file, or set"):
            FileSource(root).read(key)
        assert FileSource(root, links=True).read(key) == content
    for links in (False, True):
        with pytest.raises(DataError, match=r"circle\.png: cannot be opened"):
            FileSource(root, links=links).read("circle.png")
        with pytest.raises(DataError, match="climbs out of its folder"):
            FileSource(root, links=links).read("../outside/deep/a.png")


def test_text_in_an_image_that_unfolds_to_gigabytes_is_refused() -> None:
    image, page = Image.new("RGB", (9, 9)), io.BytesIO()
    image.save(page, "PNG")
    data = b"k\0\0" + zlib.compress(b"x" * 200_000_000, 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    content = page.getvalue()
    assert len(chunk) < 250_000
    with pytest.raises(DataError, match="damaged or truncated image"):
        decode_image("a.png", content[:33] + chunk + content[33:])


def test_inspection_hashes_what_is_readable_and_lists_the_rest(tmp_path: Path) -> None:
    content = {f"{n:02d}.png": encoded(Image.new("L", (8, 8), n)) for n in range(20)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "07.png").write_bytes(encoded(Image.new("L", (1, 1))))
    done: list[int] = []
    found = inspect_images(FileSource(tmp_path), list(content), "t.csv", progress=done.append)
    assert done == list(range(1, 21))
    assert {key: (error.kind, error.detail) for key, error in found.unreadable.items()} == {
        "07.png": (LeftOut.TOO_SMALL, "1x1 px")
    }
    assert list(found.readable) == [name != "07.png" for name in content]
    expected = [hashlib.sha256(data).digest() for name, data in content.items() if name != "07.png"]
    assert [row.tobytes() for row in found.digests] == expected


def test_of_a_finished_run_the_bytes_are_hashed_and_only_what_it_could_not_read_is_decoded(tmp_path: Path) -> None:
    names = [f"{k:02d}.png" for k in range(30)]
    write_images(tmp_path, names)
    (tmp_path / names[3]).write_bytes(b"no image")
    source = FileSource(tmp_path)
    first = inspect_images(source, names, "there")
    again = inspect_images(source, names, "there", unread_before=frozenset(first.unreadable))
    assert again.unreadable.keys() == first.unreadable.keys() == {names[3]}
    assert (again.digests == first.digests).all()
    assert not again.looks.to_numpy().any()
    (tmp_path / names[5]).write_bytes(b"changed since")  # not decoded, so not set aside: its bytes tell
    changed = inspect_images(source, names, "there", unread_before=frozenset(first.unreadable))
    assert changed.readable.sum() == 29
    assert (changed.digests != first.digests).any(axis=1).sum() == 1


def test_no_image_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 images \(100%\) cannot be read: missing file \(1\); e.g. a.png"):
        inspect_images(FileSource(tmp_path), ["a.png"], "t.csv")


def test_the_fingerprint_is_a_known_one() -> None:
    frame = pd.DataFrame({"image": ["a"], "label": ["x"]})
    expected = hashlib.sha256(b"image,label,sha256\na,x,00\n").hexdigest()
    assert fingerprint(frame, np.zeros((1, 1), dtype=np.uint8)) == expected


def test_images_are_of_one_content_where_all_bytes_of_their_hashes_are() -> None:
    """The second begins as the first does, and is another; the fourth is the first once more."""
    digests = np.zeros((5, 32), dtype=np.uint8)
    digests[1, 31], digests[2, 0], digests[4, 9] = 1, 1, 1
    first, second, third, fourth, fifth = same_content(digests)
    assert first == fourth
    assert len({first, second, third, fifth}) == 4
