"""Decoded images kept in a folder that is named: the record is the same, and no run holds any."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

import vit_audit as va
from audit.cli import main

pytestmark = pytest.mark.unit
IMAGES = 80


def squashed(image: Image.Image, by: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((32, 32))) / 255.0 + by).permute(2, 0, 1).float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


def plan_of(folder: Path, fn: Callable[[Image.Image], torch.Tensor], **settings: Any) -> va.Plan:
    rows = [(f"{i}.png", "no" if i % 2 else "yes", "one" if i % 4 < 2 else "two") for i in range(IMAGES)]
    frame = pd.DataFrame(rows, columns=["path", "label", "kind"])
    data = va.Data.from_frame(frame, images="path", label="label", groups={"kind": "kind"}, root=folder)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=2)
    net = va.wrap(model.eval(), ["no", "yes"], preprocess=va.Preprocess(fn))
    asked = {"outcomes": ["yes"], "min_group_size": 2, "permutations": 200, "bootstrap": 200}
    return va.plan({"name": "noise", "audit": asked, **settings}, net, data)


def files_of(folder: Path) -> dict[Path, int]:
    """Return all files below a folder, with when they were written."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("held", ["memory", "none"])
def test_the_record_is_the_same_with_and_without(
    folder: Path, tmp_path: Path, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    plan, kept = plan_of(folder, squashed, data={"cache": held}), tmp_path / "kept"
    without = va.audit(plan, out=tmp_path / "without" / "run", device="cpu", report=False).folder
    first = va.audit(plan, out=tmp_path / "first" / "run", device="cpu", report=False, cache_dir=kept).folder
    written = files_of(kept)
    second = va.audit(plan, out=tmp_path / "second" / "run", device="cpu", report=False, cache_dir=kept).folder
    assert len(written) == IMAGES
    assert files_of(kept) == written  # nothing was decoded again
    for name in ("audit.json", "effects/unpatched.parquet"):
        assert (without / name).read_bytes() == (first / name).read_bytes() == (second / name).read_bytes()
    assert set(files_of(without)) == set(files_of(second))
    some = (kept / next(iter(written))).read_bytes()[100:132]  # of noise: nowhere else by chance
    assert not any(some in path.read_bytes() for path in second.rglob("*") if path.is_file())
    assert va.verify(second).holds


def test_a_function_that_nothing_tells_from_another_is_refused(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, functools.partial(squashed, by=0.5))
    with pytest.raises(va.InputError, match=r"^--cache-dir: nothing tells the preprocessing, .* leave the folder out$"):
        va.audit(plan, out=tmp_path / "own", device="cpu", cache_dir=tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_images_or_of_the_run_is_refused(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, squashed)
    refused = {
        folder: "is where the data lie",
        tmp_path / "own" / "deep": "is in .*own, where runs are, and no run holds",
    }
    for kept, what in refused.items():
        with pytest.raises(va.InputError, match=f"^{kept}: {what}.*; name another folder with --cache-dir$"):
            va.audit(plan, out=tmp_path / "own", device="cpu", cache_dir=kept)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kept", "code", "said"),
    [
        ("file", 2, "file: is a file, and decoded images go to a folder; name a folder with --cache-dir"),
        ("out", 2, "out: is in {place}/out, where runs are, and no run holds images"),
        ("out/deep", 2, "out/deep: is in {place}/out, where runs are, and no run holds images"),
        ("old run/deep", 2, "deep: is in {place}/old run, where runs are, and no run holds images"),
        ("data", 2, "data: is where the data lie; name another folder with --cache-dir"),
        ("data/classes/third", 2, "third: is where the data lie; name another folder with --cache-dir"),
        ("/proc/kept", 5, "/proc/kept: cannot be written"),
    ],
)  # fmt: skip
def test_a_folder_that_will_not_do_is_refused_before_an_image_is_opened(
    tmp_path: Path, kept: str, code: int, said: str
) -> None:
    if kept.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no such folder that nobody can write to")
    (tmp_path / "file").touch()
    (tmp_path / "old run").mkdir()
    (tmp_path / "old run" / "audit.json").touch()
    (tmp_path / "data" / "classes" / "yes").mkdir(parents=True)
    (tmp_path / "data" / "classes" / "yes" / "1.png").write_bytes(b"no image")
    card = tmp_path / "card.yaml"
    card.write_text("data: {reader: folder, path: classes}\ngroups: {kind: {column: kind}}\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    command = ["run", card, "--data", tmp_path / "data", "--out", tmp_path / "out", "--cache-dir", tmp_path / kept]
    result = CliRunner().invoke(main, [str(part) for part in command])
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert said.format(place=tmp_path) in line
    assert sorted(tmp_path.rglob("*")) == before
