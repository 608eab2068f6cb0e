"""The run directory: names, lock, whole files, manifest."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path
from typing import IO

import pandas as pd
import pytest

import audit.batching
import audit.models
from audit.errors import InputError, UnfinishedError
from audit.store import (
    LOCK,
    cache_folder,
    check_writable,
    file_hash,
    folder_name,
    locked,
    question_hash,
    run_folder,
    source_hash,
    write_table,
    write_text,
)
from tests.limits import files_of_at_most

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("Faces, 2024: a/b", "faces-2024-a-b"),
        ("../../etc", "etc"),
        ("!!!", "audit"),
        ("x" * 90, "x" * 40),
        ("Gesichter äöü", "gesichter"),
    ],
)
def test_slug_is_safe_as_a_folder(name: str, safe: str) -> None:
    assert folder_name(name) == safe


def test_question_hash_depends_on_content_not_on_order() -> None:
    assert question_hash({"a": 1, "b": [2]}) == question_hash({"b": [2], "a": 1})
    assert question_hash({"a": 1, "b": [2]}) != question_hash({"a": 1, "b": [3]})


def test_run_folder_of_the_same_question_is_found_again(tmp_path: Path) -> None:
    key = "0123456789abcdef"
    old = tmp_path / "faces-2020-01-01-01234567"
    old.mkdir()
    assert run_folder(tmp_path, "Faces", key) == old
    assert run_folder(tmp_path, "Faces", "f" * 16) != old
    assert run_folder(tmp_path, "Other", key).name.startswith("other-")


def test_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        (run / "kept.txt").write_text("x", encoding="utf-8")
        with pytest.raises(UnfinishedError, match="another run is at work"), locked(run):
            pass
        assert (run / ".lock").exists()  # the refused run leaves the other's lock alone
    assert [p.name for p in run.iterdir()] == ["kept.txt"]
    with locked(run):
        pass


def test_a_lock_that_its_holder_removed_meanwhile_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, its holder has let go, and a third has begun."""
    run, lock = tmp_path / "run", fcntl.flock

    def late(handle: IO[str], how: int) -> None:
        (run / LOCK).unlink()
        (run / LOCK).write_text("", encoding="utf-8")
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UnfinishedError, match="another run is at work"), locked(run):
        raise AssertionError
    assert (run / LOCK).is_file()


def test_the_hash_of_code_is_of_modules_and_of_packages() -> None:
    alone, with_memory = source_hash((audit.models,)), source_hash((audit.models, audit.batching))
    assert alone != with_memory != source_hash((audit.batching,))
    assert alone == source_hash((audit.models,))


def test_folder_goes_again_where_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), locked(tmp_path / "run"):
        raise ValueError("stop")
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UnfinishedError, match="choose another --out"), locked(tmp_path / "file" / "run"):
        pass


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    what = r"a\.txt: cannot be written \(File too large\); make room, or look at"
    with files_of_at_most(2), pytest.raises(UnfinishedError, match=what):
        write_text(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text(encoding="utf-8") == "old"


def test_table_comes_back_as_it_was(tmp_path: Path) -> None:
    table = pd.DataFrame({"head": [0, 1], "p": [0.25, 0.5]})
    write_table(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_file_hash_reads_files_larger_than_a_chunk(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "big").write_bytes(content)
    assert file_hash(tmp_path / "big") == hashlib.sha256(content).hexdigest()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.delenv("VIT_AUDIT_CACHE", raising=False)
    assert cache_folder() == Path("/elsewhere/vit-audit")
    monkeypatch.setenv("VIT_AUDIT_CACHE", "/here")
    assert cache_folder() == Path("/here")


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("x")
    for folder in (tmp_path, tmp_path / "out", tmp_path / "out" / "deep"):
        check_writable(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["own.txt"]


@pytest.mark.parametrize("below", ["", "deep/out"])
def test_a_folder_that_cannot_be_written_is_told_at_once(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="file: is a file, and runs go to a folder"):
        check_writable(tmp_path / "file" / below)
    with pytest.raises(UnfinishedError, match="cannot be written"):
        check_writable(Path("/proc/nothing") / below)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnfinishedError, match="cannot be written"):
        check_writable(tmp_path / "gone" / below)
