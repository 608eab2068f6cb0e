"""The race's own arithmetic, without the peers: they stand in an environment that the race makes for itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audit.batching import batch_size_limit
from audit.models.adapters.registry import adapter
from audit.patching.hooks import donor_head_outputs, patch_with_hooks
from audit.patching.sites import Site
from benchmarks.sweep import environment, floor, race, run, summary
from benchmarks.sweep.cases import DEMO, Case, build, draw_images
from benchmarks.sweep.contenders import Layers, Sweep, plain_hooks, this_tool
from benchmarks.sweep.plot import plot_cost
from tests.models_for_tests import hooks_left

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Spare these small models the wait of one thread for another, which on a busy machine is most of their time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SMALL = Case(DEMO, 3, 2, depth=3)
TINY = "vit_tiny_patch16_224"


@torch.inference_mode()
def test_hooks_and_this_tool_patch_the_same() -> None:
    model = build(SMALL, 0)
    images, donors = draw_images(model, 3, 1)
    expected = plain_hooks(model)(images, donors, range(3))
    assert expected.shape == (3, 4, 3, 2)
    assert (expected - model(images)).abs().amax((-1, -2)).min() > 0.01
    torch.testing.assert_close(this_tool(model)(images, donors, range(3)), expected, atol=1e-5, rtol=0)
    site = Site(1, 2)
    by_writes = patch_with_hooks(model, images, donor_head_outputs(model, donors, [site]))
    torch.testing.assert_close(expected[1, 2], by_writes, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain_hooks(model)(images, donors, [1])[0], expected[1])
    assert hooks_left(model) == 0


def test_more_recipients_than_this_tool_takes_at_once() -> None:
    model = build(SMALL, 0)
    images, donors = draw_images(model, 3, 1)
    whole = this_tool(model)(images, donors, [0, 2])
    with batch_size_limit(2):
        torch.testing.assert_close(this_tool(model)(images, donors, [0, 2]), whole, atol=1e-5, rtol=0)


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("case", "above_bound"),
    [
        pytest.param(Case(TINY, 2, 1), 1.02, marks=pytest.mark.long),
        (Case("vit_medium_patch16_gap_256", 1, 1, depth=3), 1.04),
        (Case(DEMO, 2, 1), 1.08),
    ],
    ids=["class token", "average pool", "demo: few layers, so the last one weighs more"],
)
def test_operations_are_those_that_torch_counts(case: Case, above_bound: float) -> None:
    model = build(case, 0).to("meta")
    images = torch.empty(case.images, 3, *model.patch_embed.img_size, device="meta")
    sizes, layers = floor.sizes_of(model), range(adapter(model).depth)
    one_pass = case.images * floor.pass_flops(sizes).total()
    naive, bound = (count(sizes, case.images).total() for count in (floor.naive_flops, floor.bound_flops))
    assert counted(lambda: model(images)) == pytest.approx(one_pass, rel=0.01)
    assert counted(lambda: plain_hooks(model)(images, images, layers)) == pytest.approx(naive, rel=0.01)
    assert bound <= counted(lambda: this_tool(model)(images, images, layers)) <= above_bound * bound


@pytest.mark.parametrize(("size", "expected"), [("tiny", 2.19), ("small", 2.25), ("base", 2.28)])
def test_the_bound_is_the_published_one(size: str, expected: float) -> None:
    width = {"tiny": 192, "small": 384, "base": 768}[size]
    sizes = floor.Sizes(196, 768, 197, width, width // 64, width, 4 * width, 12, 1000, 1)
    naive, bound = (count(sizes, 5).total() for count in (floor.naive_flops, floor.bound_flops))
    assert naive / bound == pytest.approx(expected, abs=0.005)


def test_folding_the_last_keys_and_values_is_exact_and_as_cheap_as_counted() -> None:
    """What the bound takes for granted: q W_k' x' and (a x) W_v are the same numbers, without keys or values."""
    model = build(SMALL, 0)
    sizes, attention = floor.sizes_of(model), model.blocks[-1].attn
    x = torch.randn(1, sizes.tokens, sizes.width, generator=torch.Generator().manual_seed(0))
    w_q, w_k, w_v = (w.unflatten(0, (sizes.heads, -1)) for w in attention.qkv.weight.chunk(3))
    b_q, _, b_v = (b.unflatten(0, (sizes.heads, -1)) for b in attention.qkv.bias.chunk(3))
    found: list[torch.Tensor] = []

    def fold() -> None:
        q = (w_q.flatten(0, 1) @ x[0, :1].T).unflatten(0, (sizes.heads, -1)) + b_q.unsqueeze(-1)
        scores = torch.bmm(q.mT, w_k) @ x[0].T * attention.scale
        z = torch.bmm(scores.softmax(-1) @ x[0], w_v.mT)
        found.append(z.squeeze(1).flatten() + b_v.flatten())

    operations = counted(fold)
    caught: list[torch.Tensor] = []
    handle = attention.proj.register_forward_pre_hook(lambda _module, args: caught.append(args[0][0, 0]))
    attention(x)
    handle.remove()
    torch.testing.assert_close(found[0], caught[0], atol=1e-5, rtol=0)
    assert (
        operations == floor.folded_attention_operations(sizes, 1).total() < floor.attention_operations(sizes, 1).total()
    )


LAPS = [
    {
        name: {"seconds": seconds * slower, "cpu_seconds": 2 * seconds * slower}
        for name, seconds in {
            summary.TOOL: 2.0,
            summary.HOOKS: 5.0,
            summary.SKIP: 3.0,
            "quick peer": 4.0 + late,
            "slow peer": 9.0,
            summary.FLOOR: 1.6,
        }.items()
    }
    for slower, late in ((1.0, 0.0), (3.0, 0.0), (2.0, 1.0))
]


def record(**changes: Any) -> dict[str, Any]:
    return {
        "rounds": LAPS,
        "max_abs_diff": {summary.TOOL: 2e-6, "quick peer": 0.0},
        "peak_bytes": {summary.TOOL: 3 * 2**20},
        "smallest_effect": 0.2,
        "failed": {},
        "bound_flops": 16_000_000_000,
        "naive_flops": 35_000_000_000,
        **changes,
    }


def test_ratios_are_taken_inside_a_round() -> None:
    results = summary.summarise({"m": record()})
    assert results["ratio_fastest_peer"]["m"] == {"median": 2.0, "min": 2.0, "max": 2.5, "cpu_median": 2.0}
    assert results["ratio_nnsight_skip"]["m"]["median"] == pytest.approx(1.5)
    assert results["ratio_floor"]["m"]["median"] == pytest.approx(1.25)
    assert results["max_abs_diff"]["m"] == 2e-6
    case = results["cases"]["m"]
    assert case["fastest_peer"] == "quick peer"
    assert case["seconds"][summary.TOOL] == 4.0
    assert case["cpu_seconds"][summary.TOOL] == 8.0
    assert case["ratio_to_this_tool"][summary.HOOKS]["median"] == pytest.approx(2.5)
    assert case["naive_to_bound"] == pytest.approx(35 / 16)
    assert case["gemm_gflop_per_second"] == pytest.approx(16 / 3.2)
    assert case["peak_mib"] == {summary.TOOL: 3.0}


def test_the_table() -> None:
    results = summary.summarise({"m, 2 images": record(failed={"broken": "ImportError: gone"})})
    table = summary.table(results).splitlines()
    assert table[2] == (
        "| m, 2 images | 2.00 [2.00, 2.50] (quick peer) | 1.50 [1.50, 1.50] | 1.25 [1.25, 1.25] | 2.0e-06 | 2.19 |"
    )
    assert "| m, 2 images | this tool | 4.00 | 8.00 | 1 | 3 |" in table
    assert "| m, 2 images | plain hooks | 10.00 | 20.00 | 2.50 [2.50, 2.50] |  |" in table
    assert "| m, 2 images | broken | could not be run: ImportError: gone | | | |" in table


def test_no_peer_could_be_run() -> None:
    alone = [{name: lap for name, lap in laps.items() if name in (summary.TOOL, summary.FLOOR)} for laps in LAPS]
    results = summary.summarise({"m": record(rounds=alone)})
    assert results["ratio_fastest_peer"]["m"] is None
    assert results["ratio_nnsight_skip"]["m"] is None
    assert "| m | none | none | 1.25 [1.25, 1.25] |" in summary.table(results)


def off(model: Any) -> Sweep:
    right = plain_hooks(model)

    def sweep(images: torch.Tensor, donors: torch.Tensor, layers: Layers) -> torch.Tensor:
        return right(images, donors, layers) + 2e-4

    return sweep


def unwilling(_model: Any) -> Sweep:
    raise ImportError("not here")


def test_a_round_measures_all_who_run_and_finds_who_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "TIMED_SECONDS", 0.0)
    contenders = {summary.HOOKS: plain_hooks, summary.TOOL: this_tool, "off": off, "unwilling": unwilling}
    found = race.race(SMALL, contenders, seed=0)
    assert len(found.rounds) == 2
    for laps in found.rounds:
        assert set(laps) == {summary.FLOOR, summary.HOOKS, summary.TOOL, "off"}
        assert all(lap.seconds > 0 and lap.cpu_seconds > 0 for lap in laps.values())
    assert found.failed == {"unwilling": "ImportError: not here"}
    assert found.max_abs_diff[summary.HOOKS] == 0.0
    assert found.max_abs_diff[summary.TOOL] < 1e-5
    assert found.max_abs_diff["off"] == pytest.approx(2e-4, rel=1e-2)
    assert found.smallest_effect > 0.01


@pytest.mark.parametrize(("apart", "code"), [(2e-6, 0), (2e-4, 1), (float("nan"), 1)])
def test_a_peer_that_disagrees_makes_the_run_fail(
    apart: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = summary.summarise({"m": record(max_abs_diff={"quick peer": apart})})
    results["series"] = {"model": "m", "of": {"images": {"at": [1.0, 2.0], summary.TOOL: [0.1, 0.2]}}}
    monkeypatch.setattr(environment, "make_environment", lambda _work: Path("python"))
    monkeypatch.setattr(environment, "is_inside", lambda _python: True)
    monkeypatch.setattr(run, "measure", lambda **_: results)
    out = tmp_path / "out.json"
    assert run.main(["--quick", "--json", str(out)]) == code
    assert ("quick peer differs from plain hooks by" in capsys.readouterr().err) == bool(code)
    assert set(json.loads(out.read_text())) >= {*summary.RATIOS, "max_abs_diff", "cases"}
    assert (tmp_path / "cost.svg").is_file()
    assert run.main(["--table", str(out)]) == 0
    assert capsys.readouterr().out == summary.table(results) + "\n"


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Case] = []

    def measure(case: Case, *_: object) -> race.Record:
        measured.append(case)
        return race.Record(case, 1, 2, [{}])

    monkeypatch.setattr(race, "race", measure)
    first, again = (run.measure_and_store(SMALL, tmp_path, 0, with_memory=False) for _ in range(2))
    assert first == again
    assert measured == [SMALL]


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    series = {"images": {"at": [1.0, 2.0], "a": [0.1, 0.2]}, "depth": {"at": [2.0, 4.0], "a": [0.1, 0.3]}}
    for name in ("one.svg", "two.svg"):
        plot_cost(series, "m", tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "layers" in text
