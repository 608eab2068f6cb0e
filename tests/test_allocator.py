"""The allocator is told where there is one to tell, and nowhere else."""

from __future__ import annotations

import platform

import pytest

from audit import allocator

pytestmark = pytest.mark.unit


def test_glibc_is_told() -> None:
    assert allocator.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
