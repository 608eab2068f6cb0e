"""A run leaves the process as it was, whatever it ends by."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from PIL import ImageFile
from transformers.utils.logging import is_progress_bar_enabled

import vit_audit as va
from audit.batching import max_batch_size, used
from audit.card.schema import Download
from audit.data.fetch import fetch_one
from audit.process_state import run_state
from tests.data.loopback import serving
from tests.models.small_towers import write_hf

pytestmark = pytest.mark.unit
MIB = 2**20


def state() -> dict[str, Any]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
        "random state": torch.get_rng_state().tolist(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "limits": resource.getrlimit(resource.RLIMIT_DATA),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "batch": max_batch_size(10_000, 1.0),
        "arrow": pa.default_memory_pool().backend_name,
        "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        "levels": {name: logging.getLogger(name).level for name in ("transformers", "huggingface_hub", "pooch")},
        "bars": (is_progress_bar_enabled(), are_progress_bars_disabled()),
    }


def disturb() -> None:
    """Change all that a run may change, by itself or through a library."""
    torch.set_num_threads(3)
    torch.manual_seed(9)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = not torch.backends.cuda.matmul.allow_tf32
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    warnings.filterwarnings("ignore", message="anything")
    ImageFile.LOAD_TRUNCATED_IMAGES = not ImageFile.LOAD_TRUNCATED_IMAGES
    pa.set_memory_pool(pa.system_memory_pool())


def succeed() -> None:
    with run_state(memory=used() + 2000 * MIB, threads=2):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 2
        assert max_batch_size(10_000, MIB) < 10_000
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
        disturb()


def fail() -> None:
    with pytest.raises(KeyboardInterrupt), run_state():
        disturb()
        raise KeyboardInterrupt


def nest() -> None:
    with run_state(memory=used() + 2000 * MIB, threads=1):
        outer = state()
        with pytest.raises(ValueError, match="inner"), run_state(deterministic=False, threads=2):
            assert not torch.are_deterministic_algorithms_enabled()
            assert max_batch_size(10_000, MIB) == 10_000
            disturb()
            raise ValueError("inner")
        assert state() == outer
        disturb()


@pytest.mark.parametrize("block", [succeed, fail, nest])
@pytest.mark.parametrize("warn_only", [None, True, False])
def test_all_is_as_it_was(block: Callable[[], None], warn_only: bool | None) -> None:
    with run_state():  # whatever this test sets itself
        torch.use_deterministic_algorithms(warn_only is not None, warn_only=bool(warn_only))
        before = state()
        block()
        assert state() == before


@pytest.mark.parametrize("value", [None, ":4096:8"])
def test_the_variable_of_cublas_comes_back(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
    succeed()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == value


def test_loggers_and_bars_of_libraries_are_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VIT_AUDIT_OFFLINE", raising=False)
    write_hf(tmp_path / "clip", "clip")
    pytest.importorskip("requests")  # whose import sets filters of warnings
    prompts = {"cat": ["a cat"], "dog": ["a dog"]}
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library says of its own parts
        va.load_model({"name": "huggingface", "weights": "clip", "prompts": prompts}, folder=tmp_path)
    assert state() == before
    with serving({"/a.csv": b"a"}) as address:
        digest = "sha256:" + hashlib.sha256(b"a").hexdigest()
        fetch_one(Download(url=f"{address}/a.csv", hash=digest), tmp_path)
    assert state() == before
