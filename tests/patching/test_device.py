"""On an accelerator sweeps give what they give on the processor."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from audit.models.adapters.registry import adapter
from audit.models.device import CPU, CUDA, device_of, open_device
from audit.patching.first_order import sweep_first_order
from audit.patching.sites import Site
from audit.patching.sweep import DonorKind, measure_unpatched, sweep, sweep_together
from tests.models_for_tests import FAMILIES, noise_pixels, tiny

pytestmark = pytest.mark.unit
OUTCOMES = {"happiness": 2}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def plan() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "recipient": [0, 1, 2, 3],
            "cross": [5, 4, 7, 6],
            "placebo": [4, 5, 6, 7],
            "unit": [0, 0, 1, 1],
            "side": ["group", "reference"] * 2,
            "stratum": 0,
        }
    )


def every_sweep(family: str, device: torch.device) -> list[pd.DataFrame]:
    model, pixels, rows = tiny(family).to(device), noise_pixels(8), np.arange(4)
    other = tiny(family, seed=3).to(device)
    kinds = [DonorKind("cross", model, rows + 4), DonorKind("other", other, rows),
             DonorKind("weights", other, rows, weights_only=True)]  # fmt: skip
    layers = range(adapter(model).depth)
    sets = {"both": [Site(0, 0), Site(adapter(model).depth - 1, 0)]}
    assert device_of(model).type == device.type
    return [
        measure_unpatched(model, pixels, rows, OUTCOMES),
        sweep(model, pixels, rows, kinds, layers=layers, outcomes=OUTCOMES),
        sweep_together(model, pixels, rows, kinds[:1], sets=sets, outcomes=OUTCOMES),
        sweep_first_order(
            model, pixels, plan(), np.arange(8), ("cross", "placebo"), layers=layers, outcomes=OUTCOMES
        ),
    ]  # fmt: skip


@needs_cuda
@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_on_an_accelerator_are_those_on_the_processor(family: str) -> None:
    for here, there in zip(every_sweep(family, open_device(CPU)), every_sweep(family, open_device(CUDA)), strict=True):
        pd.testing.assert_frame_equal(there, here, rtol=0, atol=1e-4)


@needs_cuda
def test_sweeps_on_an_accelerator_repeat_to_the_last_bit() -> None:
    for first, again in zip(*(every_sweep("class token", open_device(CUDA)) for _ in range(2)), strict=True):
        pd.testing.assert_frame_equal(first, again, rtol=0, atol=0)


@needs_cuda
def test_an_accelerator_whose_memory_runs_out_goes_on_with_less_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given a third of what the sweep took, and a batch size that heeds nothing."""
    device, pixels, rows = open_device(CUDA), noise_pixels(48, size=224), np.arange(24)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval().to(device)
    monkeypatch.setattr("audit.patching.sweep.memory_of", lambda _device: None)
    monkeypatch.setattr("audit.patching.engine.memory_of", lambda _device: None)

    def swept() -> pd.DataFrame:
        kinds = [DonorKind("cross", model, rows + 24)]
        table = sweep(model, pixels, rows, kinds, layers=range(2), outcomes=OUTCOMES)
        return table.sort_values(["position", "layer", "head"], ignore_index=True)

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held, whole = torch.cuda.memory_allocated(), swept()
    third = held + (torch.cuda.max_memory_allocated() - held) // 3
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(third / torch.cuda.get_device_properties(device).total_memory)
    torch.cuda.reset_peak_memory_stats()
    failed = torch.cuda.memory_stats()["num_ooms"]
    try:
        small = swept()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_stats()["num_ooms"] > failed
    assert torch.cuda.max_memory_allocated() <= third
    pd.testing.assert_frame_equal(small, whole, rtol=0, atol=1e-4)


def test_on_the_processor_everything_sweeps() -> None:
    unpatched, single, together, estimated = every_sweep("class token", open_device(CPU))
    assert [len(t) for t in (unpatched, single, together, estimated)] == [4, 4 * 3 * 8, 4, 4 * 2 * 8]
    assert not any(t.isna().any(axis=None) for t in (unpatched, single, together, estimated))
