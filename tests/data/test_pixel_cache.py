"""Decoded images kept on the disk: the same bits, whoever reads them, and nothing that is half-written."""

from __future__ import annotations

import logging
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit.data import pixel_cache
from audit.data.ahead import in_image_batches
from audit.data.decode import Opening
from audit.data.pixels import Geometry, ImagesOnDemand, Pixels, centred_square, keep, load_pixels, with_cache
from audit.data.sources import FileSource
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.errors import DataError
from audit.progress import silent
from tests.limits import files_of_at_most

pytestmark = pytest.mark.unit
N = 12
KEYS = [f"{i}.png" for i in range(N)]
GEOMETRY = centred_square(16)


@dataclass(frozen=True)
class Counted(FileSource):
    """Files that count how often they are decoded."""

    decoded: list[str] = field(default_factory=list)

    def decode(self, key: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
        self.decoded.append(key)
        return super().decode(key, content, opening)


@pytest.fixture
def images(tmp_path: Path) -> Counted:
    """Write images of noise, each another."""
    (tmp_path / "images").mkdir()
    for i, key in enumerate(KEYS):
        noise = np.random.default_rng(i).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / key)
    return Counted(tmp_path / "images")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Return a folder that is not there yet."""
    return tmp_path / "deep" / "kept"


def opened(folder: Path, geometry: Geometry = GEOMETRY, made_by: str = "this test") -> Geometry:
    """Open a cache as every run does for itself."""
    return with_cache(geometry, folder, {"by": made_by})


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def as_shares(image: Image.Image) -> Pixels:
    pixels: Pixels = np.asarray(image.resize((8, 8)), dtype=np.float32) / np.float32(3)
    return pixels


@pytest.mark.parametrize(
    "geometry", [GEOMETRY, Geometry(as_shares, (8, 8, 3), dtype=np.float32)], ids=["bytes", "float32"]
)
def test_a_later_run_decodes_nothing_and_has_the_same_bits(images: Counted, kept: Path, geometry: Geometry) -> None:
    without = load_pixels(FileSource(images.root), KEYS, geometry)
    first = load_pixels(images, KEYS, opened(kept, geometry))
    assert sorted(images.decoded) == sorted(KEYS)
    second = load_pixels(images, KEYS[::-1], opened(kept, geometry))[::-1]
    assert len(images.decoded) == N
    assert without.dtype == first.dtype == second.dtype
    assert without.tobytes() == first.tobytes() == second.tobytes()
    assert len(files_of(kept)) == N


def test_another_preprocessing_or_another_image_is_decoded(images: Counted, kept: Path) -> None:
    load_pixels(images, KEYS, opened(kept))
    mirror = Geometry(lambda image: np.asarray(GEOMETRY.fit(image))[:, ::-1], GEOMETRY.shape)
    for other in (opened(kept, centred_square(15)), opened(kept, made_by="other code"), opened(kept, mirror)):
        before = len(images.decoded)
        load_pixels(images, KEYS, other)
        assert len(images.decoded) == before + N
    images.decoded.clear()
    shutil.copy(images.root / "3.png", images.root / "7.png")
    Image.new("RGB", (9, 9), "red").save(images.root / "2.png")
    pixels = load_pixels(images, KEYS, opened(kept))
    assert images.decoded == ["2.png"]
    assert (pixels[2] == (255, 0, 0)).all()
    assert np.array_equal(pixels[7], pixels[3])


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "another bit"])
def test_a_file_that_is_not_as_it_was_written_is_made_again(images: Counted, kept: Path, damage: str) -> None:
    pixels = load_pixels(images, KEYS, opened(kept))
    file = files_of(kept)[0]
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[5] ^= 1
    file.write_bytes({"cut": whole[:-1], "longer": whole + b"0", "empty": b"", "another bit": bytes(changed)}[damage])
    images.decoded.clear()
    assert np.array_equal(load_pixels(images, KEYS, opened(kept)), pixels)
    assert len(images.decoded) == 1
    assert file.read_bytes() == whole


def test_nobody_else_may_read_it(images: Counted, kept: Path) -> None:
    load_pixels(images, KEYS, opened(kept))
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [kept, *kept.rglob("*")]}
    assert modes == {(True, 0o700), (False, 0o600)}


def test_processes_that_decode_read_what_the_run_has_kept(images: Counted, kept: Path) -> None:
    geometry = opened(kept)
    on_demand = ImagesOnDemand(images, [*KEYS, None], geometry, workers=2)
    seen = np.concatenate(in_image_batches(lambda batch: batch.copy(), on_demand, size=4))
    assert files_of(kept) == []  # by one process alone
    told: list[tuple[int, int]] = []
    keep(on_demand, lambda done, total: told.append((done, total)))
    assert told == [(N + 1, N + 1)]
    assert len(files_of(kept)) == len(images.decoded) == N  # and none of the image that is held back

    class Closed(Counted):
        def decode(self, key: str, content: bytes, opening: Opening = Opening.CAREFUL) -> Image.Image:
            raise AssertionError(key)

    again = ImagesOnDemand(Closed(images.root), [*KEYS, None], geometry, workers=2)
    assert np.array_equal(np.concatenate(in_image_batches(lambda batch: batch.copy(), again, size=4)), seen)


@pytest.mark.parametrize("full", ["no room", "cannot write"])
def test_a_disk_that_is_full_is_told_of_once(
    images: Counted, kept: Path, full: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, geometry = load_pixels(FileSource(images.root), KEYS, GEOMETRY), opened(kept)
    if full == "no room":
        monkeypatch.setattr(pixel_cache, "LEFT_FREE", 1 << 60)
    with caplog.at_level(logging.WARNING, "vit_audit"), files_of_at_most(100 if full == "cannot write" else 1 << 30):
        for _ in range(2):
            assert np.array_equal(load_pixels(images, KEYS, geometry), wanted)
        keep(ImagesOnDemand(images, KEYS, geometry), silent)
    assert len(images.decoded) == 2 * N
    assert files_of(kept) == []
    (told,) = caplog.messages
    reason = "No space left on device), and are decoded whenever they are needed; make room"
    other = "File too large), and are decoded whenever they are needed; look at the disk"
    assert told.endswith(f": no more images are kept ({reason if full == 'no room' else other}")


def test_an_image_that_is_gone_is_named_though_its_pixels_are_kept(images: Counted, kept: Path) -> None:
    load_pixels(images, KEYS, opened(kept))
    (images.root / "4.png").unlink()
    with pytest.raises(DataError, match=r"^4\.png: missing file; check the path"):
        load_pixels(images, KEYS, opened(kept))


def test_what_is_drawn_is_not_kept(kept: Path) -> None:
    faces = sample_faces(8, 1, split="discovery")
    source, keys, geometry = SyntheticSource(faces), faces["image"].tolist(), opened(kept)
    keep(ImagesOnDemand(source, keys, geometry), silent)
    assert np.array_equal(load_pixels(source, keys, geometry), load_pixels(source, keys, GEOMETRY))
    assert files_of(kept) == []
