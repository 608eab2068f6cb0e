"""Metadata never cost an image; sixteen bits are scaled by what they hold."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit.data.decode import DEPTH, METADATA, Opening, decode_image, remarks_of, to_8_bits
from audit.data.sources import FileSource
from audit.records import DataWarningCode
from audit.report.text import warning_sentence
from tests.data.faces import card_of, face_table, read, write_faces
from tests.models.awkward_images import write_awkward_images

pytestmark = pytest.mark.unit
ORIENTATION, GPS, X_RESOLUTION, MAKER_NOTE = 0x0112, 0x8825, 0x011A, 0x927C
ORIENTED = {1: (10, 20), 3: (10, 20), 6: (20, 10), 8: (20, 10)}


def photograph(kind: str, exif: bytes = b"", **options: object) -> bytes:
    page = io.BytesIO()
    Image.new("RGB", (10, 20), (90, 60, 30)).save(page, kind, exif=exif, **options)
    return page.getvalue()


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")[:4]


def block(*entries: bytes, tail: bytes = b"") -> bytes:
    """Return an EXIF block with one directory."""
    return (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0" + tail
    )  # fmt: skip


UPRIGHT = entry(ORIENTATION, 3, 1, b"\x06\0")
AFTER_TWO = 8 + 2 + 2 * 12 + 4  # where the tail of a block of two entries begins
SOUND = {  # what is odd about it, the block, whether the orientation can still be read
    "rational without a denominator (Pillow#8965, #8605)": (
        block(UPRIGHT, entry(X_RESOLUTION, 10, 1, struct.pack("<I", AFTER_TWO)), tail=struct.pack("<ii", -1, 0)),
        True,
    ),
    "two values where one is meant (Pillow#4238)": (
        block(UPRIGHT, entry(X_RESOLUTION, 5, 2, struct.pack("<I", AFTER_TWO)), tail=struct.pack("<IIII", 1, 1, 2, 1)),
        True,
    ),
    "GPS directory that is a number": (block(UPRIGHT, entry(GPS, 4, 9, b"\xff\xff\xff\x7f")), True),
    "directory that points at itself": (block(UPRIGHT, entry(0x8769, 4, 1, b"\x08")), True),
    "orientation undefined": (block(entry(ORIENTATION, 3, 1, b"\0\0")), False),
    "header twice (Pillow#8348)": (b"Exif\0\0" + block(UPRIGHT), True),
    "orientation as a long": (block(entry(ORIENTATION, 4, 1, b"\x06\0\0\0")), True),
    "huge count": (block(UPRIGHT, entry(MAKER_NOTE, 7, 0xFFFFFFF0, b"\xff\xff\xff\xff")), True),
}
BROKEN = {
    "orientation out of range": block(entry(ORIENTATION, 3, 1, b"\x63\0")),
    "orientation that is text": block(entry(ORIENTATION, 2, 4, b"six\0")),
    "orientation that is a float": block(entry(ORIENTATION, 11, 1, struct.pack("<f", 6.0))),
    "no header": b"Exif\0\0no TIFF at all",
    "cut after its header": b"Exif\0\0II*\0",
    "more entries than there are": block(UPRIGHT)[:20],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("exif", "turned"), SOUND.values(), ids=SOUND)
def test_an_odd_block_costs_nothing(kind: str, exif: bytes, turned: bool) -> None:
    image = decode_image("a", photograph(kind, exif))
    assert image.size == ((20, 10) if turned else (10, 20))
    assert np.abs(np.asarray(image, dtype=int) - (90, 60, 30)).max() <= 6
    assert remarks_of(image) == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", BROKEN.values(), ids=BROKEN)
def test_a_block_that_cannot_be_read_is_ignored_and_told_of(kind: str, exif: bytes) -> None:
    image = decode_image("a", photograph(kind, exif))
    assert image.size == (10, 20)
    assert image.mode == "RGB"
    assert remarks_of(image) == (METADATA,)


def test_orientation_in_xmp_is_applied() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    assert decode_image("a", photograph("JPEG", xmp=xmp)).size == (20, 10)


@pytest.mark.parametrize("orientation", ORIENTED)
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    corner = np.zeros((20, 10, 3), dtype=np.uint8)
    corner[0, 0] = 255
    page = io.BytesIO()
    Image.fromarray(corner).save(page, "PNG", exif=exif)
    from PIL import ImageOps

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(page.getvalue())))
    found = decode_image("a", page.getvalue())
    assert found.size == ORIENTED[orientation]
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def random_block(rng: random.Random) -> bytes:
    """Return an EXIF block of random entries, sometimes cut, sometimes with other bytes."""
    tags = [ORIENTATION, GPS, X_RESOLUTION, MAKER_NOTE, 0x8769, 0xA005, 0x9286, 0xC4A5]
    entries = [
        struct.pack(
            "<HHII",
            rng.choice([*tags, rng.randrange(65536)]),
            rng.choice([*range(15), rng.randrange(65536)]),
            rng.choice([0, 1, 2, 3, rng.randrange(2**32)]),
            rng.choice([0, 1, 6, 8, 26, rng.randrange(2**32)]),
        )
        for _ in range(rng.randrange(12))
    ]
    made = bytearray(block(*entries, tail=rng.randbytes(rng.randrange(80))))
    for _ in range(rng.choice([0, 0, 3])):
        made[rng.randrange(6, len(made))] = rng.randrange(256)
    return bytes(made[: rng.choice([len(made), len(made), rng.randrange(6, len(made))])])


@pytest.mark.property
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_block_at_all_costs_an_image(kind: str) -> None:
    rng = random.Random(kind)
    told = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as ``inspect_images`` does
        for _ in range(1500):
            image = decode_image("a", photograph(kind, random_block(rng)))
            assert image.size in ((10, 20), (20, 10))
            told += METADATA in remarks_of(image)
    assert told > 20


def test_ignored_metadata_are_counted_and_the_image_is_kept(tmp_path: Path) -> None:
    frame = face_table()
    write_faces(tmp_path, frame)
    for number, name in enumerate(frame["image"].head(3)):
        page = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(page, "JPEG", exif=BROKEN["no header"])
        (tmp_path / name).write_bytes(page.getvalue())
    samples = read(tmp_path, card_of(tmp_path, exif="apply"))
    assert not samples.quarantined
    assert len(samples.frame) == 48
    (warning,) = samples.warnings
    assert (warning.code, warning.images) == (DataWarningCode.METADATA_IGNORED, 3)
    assert warning_sentence(warning).startswith("3 images have EXIF metadata that cannot be read (e.g. images/00-")


def gray_png(levels: np.ndarray, sbit: int | None = None) -> bytes:
    page = io.BytesIO()
    Image.fromarray(levels.astype(np.uint16)).save(page, "PNG")
    content = page.getvalue()
    if sbit is None:
        return content
    body = b"sBIT" + bytes([sbit])
    chunk = struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]


RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("bits", "sbit", "told"),
    [(16, None, False), (12, None, True), (8, None, True), (12, 12, True), (10, 10, True), (14, 14, True),
     (16, 12, False)],  # a writer that scaled 12 bits up to 16, as PNG asks
)  # fmt: skip
def test_gray_levels_are_scaled_by_their_depth(bits: int, sbit: int | None, told: bool) -> None:
    levels = np.round(RAMP * (2**bits - 1))
    image = decode_image("a", gray_png(levels, sbit))
    found = np.asarray(image, dtype=int)[..., 0]
    assert np.abs(found - 255 * RAMP).max() <= 1
    assert found.max() == 255
    assert remarks_of(image) == ((DEPTH,) if told else ())


def test_known_levels() -> None:
    assert to_8_bits(np.array([0, 2048, 4095]))[0].tolist() == [0, 127, 255]
    assert to_8_bits(np.array([0, 257, 65535]))[0].tolist() == [0, 1, 255]
    assert to_8_bits(np.array([-5, 70000]))[0].tolist() == [0, 255]
    assert to_8_bits(np.array([0, 0]))[1] == 16  # black is black at any depth


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_tiffs_are_read(dtype: type, tmp_path: Path) -> None:
    values = RAMP if dtype is np.float32 else np.round(RAMP * 65535)
    Image.fromarray(values.astype(dtype)).save(tmp_path / "a.tif")
    found = np.asarray(FileSource(tmp_path).open("a.tif"), dtype=int)[..., 0]
    assert np.abs(found - 255 * RAMP).max() <= 1


def test_shallow_files_are_counted(tmp_path: Path) -> None:
    frame = face_table()
    write_faces(tmp_path, frame)
    for number, name in enumerate(frame["image"].head(2)):
        levels = np.random.default_rng(number).integers(0, 4096, (12, 12))
        (tmp_path / name).write_bytes(gray_png(levels))
    legacy = read(tmp_path, card_of(tmp_path, model={"preprocess": "legacy"}))
    (warning,) = [w for w in legacy.warnings if w.code is DataWarningCode.DEPTH_GUESSED]
    assert warning.images == 2


def test_what_the_deployed_pipeline_makes_of_odd_files_is_counted(tmp_path: Path) -> None:
    frame = face_table()
    write_faces(tmp_path, frame)
    turned, clear, deep = frame["image"].head(6).to_numpy().reshape(3, 2)
    rng = np.random.default_rng(0)
    for name in turned:
        page, noise = io.BytesIO(), rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(page, "JPEG", exif=block(UPRIGHT))
        (tmp_path / name).write_bytes(page.getvalue())
    for name in clear:
        Image.fromarray(rng.integers(0, 256, (12, 12, 4), dtype=np.uint8)).save(tmp_path / name)
    for name in deep:
        (tmp_path / name).write_bytes(gray_png(rng.integers(0, 65536, (12, 12))))
    codes = {
        DataWarningCode.EXIF_AS_STORED: "does not turn them",
        DataWarningCode.TRANSPARENCY_DROPPED: "what is stored beneath is shown",
        DataWarningCode.DEPTH_CUT: "all above 255 is white, and of floating-point pixels all below 1 is black",
    }
    found = {w.code: w for w in read(tmp_path).warnings if w.code in codes}
    for code, said in codes.items():
        assert found[code].images == 2
        assert said in warning_sentence(found[code])
    applied = {w.code: w.images for w in read(tmp_path, card_of(tmp_path, exif="apply")).warnings}
    assert applied[DataWarningCode.EXIF_APPLIED] == 2
    assert DataWarningCode.EXIF_AS_STORED not in applied


def test_opening_is_what_the_libraries_users_do(tmp_path: Path) -> None:
    for file in write_awkward_images(tmp_path):
        stored = FileSource(tmp_path).decode(file.name, file.read_bytes(), Opening.AS_STORED)
        with Image.open(file) as opened:
            np.testing.assert_array_equal(np.asarray(stored), np.asarray(opened.convert("RGB")))
        turned = FileSource(tmp_path).decode(file.name, file.read_bytes(), Opening.TURNED)
        assert (turned.size == stored.size) == (file.name != "turned.jpg")
