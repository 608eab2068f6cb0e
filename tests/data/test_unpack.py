"""Archives are unpacked as from a stranger."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.data import unpack as module
from audit.data.unpack import unpack
from audit.errors import DataError
from tests.limits import files_of_at_most

pytestmark = pytest.mark.unit


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz", **more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more.values():
            archive.addfile(member)
    return path


FILES = {"a/b/c.txt": b"1" * 5000, "d.txt": b""}


@pytest.mark.parametrize("kind", ["zip", "w:", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_of_archive_comes_out_as_it_went_in(kind: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    folder = tarfile.TarInfo("a/empty")
    folder.type = tarfile.DIRTYPE
    write_zip(packed, FILES) if kind == "zip" else write_tar(packed, FILES, kind, folder=folder)
    unpack(packed, tmp_path / "out", "here")
    found = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in tmp_path.glob("out/**/*") if p.is_file()
    }
    assert found == FILES


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:\\evil", "a\\..\\..\\evil", "http://evil/x"])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_nothing_leaves_the_folder(name: str, write: object, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    packed = write(tmp_path / "packed", {name: b"evil"})  # type: ignore[operator]
    with pytest.raises(DataError, match=r"^here: image path .* (climbs out of its folder|is not relative)"):
        unpack(packed, tmp_path / "inner" / "out", "here")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inner", "out", "packed"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "d.txt"
    packed = write_tar(tmp_path / "packed", FILES, link=member)
    with pytest.raises(DataError, match="'link' in it is no plain file"):
        unpack(packed, tmp_path / "out", "here")


def test_links_of_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="'link' in it is no plain file"):
        unpack(tmp_path / "packed", tmp_path / "out", "here")


def test_bombs_are_stopped_before_they_fill_the_disk(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "packed", {f"{n}.txt": b"\0" * 4_000_000 for n in range(5)})
    assert packed.stat().st_size < 50_000
    with pytest.raises(DataError, match="unpacks to over 100 times its size; it may be a bomb"):
        unpack(packed, tmp_path / "out", "here")
    written = sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert written <= module.MAX_ANYWAY_BYTES


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds more than 1 files"):
        unpack(write_zip(tmp_path / "packed", FILES), tmp_path / "out", "here", max_files=1)


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"here: cannot be unpacked \(OSError\)"):
        unpack(write_zip(tmp_path / "packed", {"a" * 300: b"1"}), tmp_path / "out", "here")


def test_want_of_space_is_no_fault_of_the_archive(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "packed", {"a.txt": b"1" * 100})
    with files_of_at_most(10), pytest.raises(OSError, match="File too large"):
        unpack(packed, tmp_path / "out", "here")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "./a"), ("a/b", "a//b")])
def test_one_path_twice_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds one path twice"):
        unpack(write_tar(tmp_path / "packed", dict.fromkeys(names, b"1")), tmp_path / "out", "here")


@pytest.mark.property
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["zip", "w:", "w:gz", "w:xz"]))
def test_damaged_archives_are_refused_or_unpacked(data: st.DataObject, kind: str, tmp_path: Path) -> None:
    packed, out = tmp_path / "packed", tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    write_zip(packed, FILES) if kind == "zip" else write_tar(packed, FILES, kind)
    content = bytearray(packed.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    packed.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        unpack(packed, out, "here")
    except DataError as error:
        assert str(error).startswith("here: ")
        assert "\n" not in str(error)
