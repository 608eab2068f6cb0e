"""On an accelerator sweeps and ledgers give what they give on the processor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import timm
import torch

from audit.models.adapters.registry import Model, adapter
from audit.models.device import CPU, CUDA, device_of, devices_here, open_device
from audit.models.transforms import as_input
from audit.patching.contributions import Component, NotSummedError
from audit.patching.first_order import sweep_first_order
from audit.patching.players import merge, players_of
from audit.patching.read_back import can_read, read_back
from audit.patching.sites import Site, parts_swept
from audit.patching.sweep import DonorKind, measure_unpatched, sweep, sweep_parts, sweep_together
from audit.patching.trained import Answers, paths, shapley
from audit.patching.written import written
from audit.records import PartKind
from tests.models_for_tests import FAMILIES, noise_pixels, tiny

pytestmark = pytest.mark.unit
OUTCOMES = {"happiness": 2}
TOLERANCE = 1e-4  # nats, or of the largest number where that is above 1
needs_cuda = pytest.mark.skipif(CUDA not in devices_here(), reason=f"not run: no {CUDA} device")

Numbers = npt.NDArray[np.floating]


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


def every_ledger(family: str, device: torch.device) -> dict[str, Numbers]:
    """Return what each ledger measures; of written parts nothing where a network's log-odds are no sum."""
    model, reference = tiny(family).to(device), tiny(family, seed=3).to(device)
    pixels, rows, players = noise_pixels(8), np.arange(4), players_of(model)
    swept = sweep_parts(
        model, pixels, rows, [DonorKind("cross", model, rows + 4)], parts=parts_swept(model), outcomes=OUTCOMES
    )
    forth, back = paths(reference, model, pixels, [players, players[::-1]], OUTCOMES, rows=rows)
    sets = shapley(reference, model, pixels, merge(players), OUTCOMES, seed=0, pairs=1, rows=rows)
    found = {
        "parts": swept[[f"{of}:happiness" for of in ("p", "m")]].to_numpy(),
        **{name: log_odds_of(of.answers) for name, of in {"forth": forth, "back": back, "sets": sets}.items()},
    }
    try:
        sums = written(model, as_input(model, pixels[rows]), OUTCOMES).centred()
    except NotSummedError:
        return found
    found |= {"written": sums.values, "log-odds": sums.log_odds}
    if readers := readers_of(model, sums.components):
        read = read_back(model, as_input(model, pixels[rows]), OUTCOMES, readers)
        found["read"] = np.concatenate([one.values.reshape(-1) for one in read])
    return found


def log_odds_of(answers: Answers) -> Numbers:
    return answers.log_odds["happiness"]


def readers_of(model: Model, components: tuple[Component, ...]) -> list[Component]:
    """Return the parts of the last layer whose reading can be said."""
    last = [c for c in components if c.layer == adapter(model).depth - 1]
    return [c for c in last if c.kind in (PartKind.HEAD, PartKind.MLP) and can_read(model, c)]


@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_on_an_accelerator_are_those_on_the_processor(family: str, accelerator: torch.device) -> None:
    for here, there in zip(every_sweep(family, open_device(CPU)), every_sweep(family, accelerator), strict=True):
        pd.testing.assert_frame_equal(there, here, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_ledgers_on_an_accelerator_are_those_on_the_processor(family: str, accelerator: torch.device) -> None:
    here, there = every_ledger(family, open_device(CPU)), every_ledger(family, accelerator)
    assert there.keys() == here.keys()
    for name, numbers in here.items():
        apart = np.abs(there[name] - numbers).max()
        assert apart <= TOLERANCE * max(1.0, float(np.abs(numbers).max())), name


def test_sweeps_on_an_accelerator_repeat_to_the_last_bit(accelerator: torch.device) -> None:
    for first, again in zip(*(every_sweep("class token", accelerator) for _ in range(2)), strict=True):
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


@pytest.mark.parametrize("family", ["class token", "resnet, bottleneck"])
def test_on_the_processor_every_ledger_measures_and_repeats(family: str) -> None:
    found, again = (every_ledger(family, open_device(CPU)) for _ in range(2))
    assert {"parts", "forth", "back", "sets", "written", "log-odds"} <= found.keys()
    assert ("read" in found) == (family == "class token")
    players = len(players_of(tiny(family)))
    assert found["forth"].shape == found["back"].shape == (4, players + 1)
    np.testing.assert_allclose(found["written"].sum(axis=1), found["log-odds"], atol=TOLERANCE)
    np.testing.assert_allclose(found["forth"][:, -1], found["log-odds"][:, 0], atol=TOLERANCE)
    for name, numbers in found.items():
        np.testing.assert_array_equal(numbers, again[name])
