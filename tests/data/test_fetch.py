"""Downloads against a server on this machine: whole, checked, or nothing at all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from audit.card.load import built_in_cards, load_card
from audit.card.schema import Download
from audit.cli import main
from audit.data import fetch as module
from audit.data.fetch import fetch, fetch_one
from audit.errors import DataError, InputError, UnfinishedError
from tests.data.loopback import CUT, serving

pytestmark = pytest.mark.unit
TEXT = b"image,label\n" * 1000


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIT_AUDIT_OFFLINE", raising=False)


def hash_of(content: bytes, kind: str = "sha256") -> str:
    return f"{kind}:{hashlib.new(kind, content).hexdigest()}"


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip archive of the same bytes at any hour: parameters of tests are made of them, in every process."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_file_is_fetched_once_and_told_of(kind: str, tmp_path: Path) -> None:
    asked: list[str] = []
    told: list[tuple[int, int]] = []
    with serving({"/sets/a.csv?v=1": TEXT}, asked) as address:
        download = Download(url=f"{address}/sets/a.csv?v=1", hash=hash_of(TEXT, kind), to="set/labels.csv")
        for _ in range(2):
            (found,) = fetch([download], tmp_path, lambda name: lambda done, total: told.append((done, total)))
    assert found == tmp_path / "set" / "labels.csv"
    assert found.read_bytes() == TEXT
    assert everything(tmp_path) == ["set", "set/labels.csv"]
    assert asked == ["/sets/a.csv?v=1"]
    assert told[-1] == (len(TEXT), len(TEXT))


def test_its_own_name_is_the_default(tmp_path: Path) -> None:
    with serving({"/sets/a.csv": TEXT}) as address:
        fetch_one(Download(url=f"{address}/sets/a.csv", hash=hash_of(TEXT)), tmp_path)
    assert everything(tmp_path) == ["a.csv"]


@pytest.mark.parametrize(
    ("body", "path", "error", "what"),
    [
        (TEXT + b"!", "/a.csv", DataError, "is not the file that was meant: its hash is not sha256:"),
        (TEXT, "/b.csv", UnfinishedError, r"could not be fetched \(404 Not Found\); give the same command again"),
        (TEXT + CUT, "/a.csv", UnfinishedError, r"could not be fetched \(broken off\)"),
        (b"" + CUT, "/a.csv", UnfinishedError, r"could not be fetched \(broken off\)"),
    ],
)
def test_what_is_not_delivered_leaves_nothing(
    body: bytes, path: str, error: type[Exception], what: str, tmp_path: Path
) -> None:
    with serving({"/a.csv": body}) as address:
        download = Download(url=f"{address}{path}", hash=hash_of(TEXT), to="set/a.csv")
        with pytest.raises(error, match=what) as caught:
            fetch_one(download, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{address}{path}: ")
    assert everything(tmp_path) == []


def test_a_server_that_is_gone_is_told(tmp_path: Path) -> None:
    with serving({}) as address:
        pass
    with pytest.raises(UnfinishedError, match=r"could not be fetched \(no connection\)"):
        fetch_one(Download(url=f"{address}/a.csv", hash=hash_of(TEXT)), tmp_path)
    assert everything(tmp_path) == []


def test_a_server_that_sends_for_ever_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with serving({"/a.csv": TEXT}) as address, pytest.raises(DataError, match="sends more than 100 bytes"):
        fetch_one(Download(url=f"{address}/a.csv", hash=hash_of(TEXT)), tmp_path)
    assert everything(tmp_path) == []


def test_offline_nothing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_AUDIT_OFFLINE", "1")
    asked: list[str] = []
    with serving({"/a.csv": TEXT}, asked) as address, pytest.raises(InputError, match="VIT_AUDIT_OFFLINE is set"):
        fetch_one(Download(url=f"{address}/a.csv", hash=hash_of(TEXT)), tmp_path)
    assert not asked


def test_another_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"mine")
    with serving({"/a.csv": TEXT}) as address, pytest.raises(DataError, match=r"a\.csv: is there, and is not what"):
        fetch_one(Download(url=f"{address}/a.csv", hash=hash_of(TEXT)), tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == b"mine"


def test_what_a_killed_download_left_is_removed_and_one_at_work_is_not(tmp_path: Path) -> None:
    killed, new, working = (tmp_path / f".fetching-{name}" for name in ("killed", "new", "working"))
    for folder in (killed, new, working):
        (folder / "unpacked").mkdir(parents=True)
        (folder / "download").write_bytes(b"half")
    for folder in (killed, working):
        os.utime(folder, (0, 0))
    handle = os.open(working, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with serving({"/a.csv": TEXT}) as address:
        fetch_one(Download(url=f"{address}/a.csv", hash=hash_of(TEXT)), tmp_path)
    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fetching-new", ".fetching-working", "a.csv"]


def test_archives_are_unpacked_side_by_side_and_once(tmp_path: Path) -> None:
    bodies = {"/a.zip": zipped({"train/1.txt": b"1", "note": b"n"}), "/b.zip": zipped({"val/2.txt": b"2"})}
    asked: list[str] = []
    with serving(bodies, asked) as address:
        downloads = [
            Download(url=address + path, hash=hash_of(body), to="set", unpack=True) for path, body in bodies.items()
        ]
        for _ in range(2):
            assert fetch(downloads, tmp_path) == [tmp_path / "set"] * 2
    assert asked == ["/a.zip", "/b.zip"]
    assert everything(tmp_path) == [
        "set", "set/.fetched", "set/note", "set/train", "set/train/1.txt", "set/val", "set/val/2.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (zipped({"good": b"1", "../../evil": b"2"}), "climbs out of its folder"),
        (zipped({"good": b"1", "/evil": b"2"}), "is not relative"),
        (zipped({"good": b"1", "set/mine": b"2"}), "is there already"),
        (TEXT, "is neither a zip nor a tar archive"),
    ],
    ids=["climbs", "not relative", "there already", "no archive"],
)
def test_archives_that_reach_elsewhere_leave_nothing(body: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_bytes(b"mine")
    with serving({"/a.zip": body}) as address, pytest.raises(DataError, match=what):
        fetch_one(Download(url=f"{address}/a.zip", hash=hash_of(body), unpack=True), tmp_path)
    assert everything(tmp_path) == ["set", "set/mine"]
    assert (tmp_path / "set" / "mine").read_bytes() == b"mine"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["datasets", *map(str, arguments)])


@pytest.mark.parametrize("there", [True, False])
def test_a_move_that_was_broken_off_is_taken_up_again(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.csv": b"a", "b/c.csv": b"c", "d.csv": b"d"}
    if there:
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "own.csv").write_bytes(b"mine")
    moves = 0
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += path.parent.name == "unpacked"
        if moves == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with serving({"/a.zip": zipped(files)}) as address:
        download = Download(url=f"{address}/a.zip", hash=hash_of(zipped(files)), to="set", unpack=True)
        monkeypatch.setattr(Path, "rename", broken)
        with pytest.raises(KeyboardInterrupt):
            fetch_one(download, tmp_path)
        monkeypatch.undo()
        monkeypatch.delenv("VIT_AUDIT_OFFLINE", raising=False)
        fetch_one(download, tmp_path)
    assert {name: (tmp_path / "set" / name).read_bytes() for name in files} == files
    assert (tmp_path / "set" / ".fetched").read_text(encoding="utf-8") == f"{download.hash}\n"


def test_an_address_names_no_user() -> None:
    with pytest.raises(ValueError, match="name no user"):
        Download(url="https://me:secret@example.org/a.zip", hash=hash_of(TEXT))


def test_the_command_fetches_what_a_card_names(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    card = {"data": {"path": "a.csv", "licence": "CC0"}, "groups": {"gender": {"column": "gender"}}}
    with serving({"/a.csv": TEXT}) as address:
        card["data"]["download"] = [{"url": f"{address}/a.csv", "hash": hash_of(TEXT)}]  # type: ignore[assignment]
        path = tmp_path / "card.yaml"
        path.write_text(yaml.safe_dump(card), encoding="utf-8")
        assert "--fetch: needs a folder to download to" in command("--fetch", path).stderr
        result = command("--fetch", path, "--data", data)
        assert (result.exit_code, result.stdout) == (0, f"licence: CC0\n{data / 'a.csv'}\n")
    (data / "a.csv").unlink()
    gone = command("--fetch", path, "--data", data)
    assert gone.exit_code == 5
    assert "could not be fetched (no connection)" in gone.stderr


def test_the_command_says_where_nothing_may_be_fetched(tmp_path: Path) -> None:
    result = command("--fetch", "raf-db", "--data", tmp_path)
    assert result.exit_code == 2
    assert "names nothing that may be downloaded" in result.stderr
    assert command("--fetch", "raf", "--data", tmp_path).exit_code == 2


def test_built_in_cards_name_downloads_of_their_own_folder() -> None:
    cards = {name: load_card(path).data for name, path in built_in_cards().items()}
    named = {name: data for name, data in cards.items() if data.download}
    assert {"coco-sports", "lfw-expressions"} <= set(named)
    for data in named.values():
        assert all(
            each.to.split("/")[0] == str(data.path) and each.hash.startswith("sha256:") for each in data.download
        )
