"""Parts patched jointly: answers that are known, and the slow reference, on every supported kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from audit.errors import InputError
from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.models.named import AdaptedNetwork, PlainNetwork
from audit.models.transforms import as_input
from audit.patching.api import patch_heads
from audit.patching.api import patch_parts as patch_by_name
from audit.patching.engine import Donor
from audit.patching.hooks import patch_parts_with_hooks
from audit.patching.parts import Kind, Part, parse_part
from audit.patching.patch_parts import both_directions, layers_run, patch_parts
from audit.patching.sites import Trace, bias_output, head_part, kinds_of, parts_of, parts_swept, record, sites_of
from audit.patching.sweep import DonorKind, sweep_parts
from tests.models_for_tests import FAMILIES, enlarged, hooks_left, noise_images, noise_pixels, tiny

pytestmark = pytest.mark.unit
IMAGES, DONORS = noise_images(3), noise_images(3, seed=1)
OWN = {"plain": "plain", "plain, no places": "plain, no places", "adapted": "adapted"}
EVERY = [*FAMILIES, *OWN]


class Encoder(nn.Module):
    """A transformer of no known family, whose attention and MLP stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(SideBySide() for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        stream = self.patches(images).flatten(2).mT
        for block in self.blocks:
            stream = block(stream)
        logits: torch.Tensor = self.head(stream.mean(1))
        return logits


class SideBySide(nn.Module):
    """Adds what attention and MLP make of one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out, self.mlp = (
            nn.LayerNorm(16),
            nn.Linear(16, 48),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
        )

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the stream that leaves the block."""
        normed = self.norm(stream)
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(normed).chunk(3, -1))
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        added: torch.Tensor = stream + self.out(seen) + self.mlp(normed).relu()
        return added


def made(family: str, *, seed: int = 0) -> Any:
    """Return a tiny model of a family, or of none."""
    if family in FAMILIES:
        return tiny(family, seed=seed)
    if family == "adapted":
        named: Any = AdaptedNetwork(
            enlarged(Encoder(), seed).eval(), ["blocks.0", "blocks.1"], projection="out", heads=4, inner=["qkv"],
            classifier=None, input_size=(3, 32, 32),
        )  # fmt: skip
        return named
    row = [
        nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 16, 3, 2), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 24), nn.ReLU()),
        nn.Linear(24, 3),
    ]
    stages = ["0", "1", "2"] if family == "plain, no places" else ["0", "1"]
    network: Any = nn.Sequential(*row)
    return PlainNetwork(enlarged(network, seed).eval(), stages, classifier=None, input_size=(3, 32, 32))


def traced(model: Model, images: torch.Tensor) -> Trace:
    return record(model, images, mlp=True)


def sets_for(model: Model) -> dict[str, list[Part]]:
    """Return each part alone, single heads, and mixtures of kinds."""
    every, heads = parts_of(model), [head_part(model, site) for site in sites_of(model)]
    sets = {str(part): [part] for part in [*every, heads[0], heads[-1]]}
    kinds = {part.kind: part for part in every}
    mixed = [p for p in every if p.layer == 0 and p.kind in (Kind.ATTENTION, Kind.CLASS_TOKEN)]
    return {
        **sets,
        "every second head": heads[::2],
        "all heads": heads,
        "heads of the last layer, all MLPs": [*heads[-3:], *([Part(Kind.MLP)] if Kind.MLP in kinds else [])],
        "a head of a layer with more": [heads[0], *mixed],
    }


def logits_of(model: Model, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(images)
    return found


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("family", EVERY)
def test_the_engine_gives_what_hooks_give(family: str) -> None:
    model = made(family)
    own, given = traced(model, IMAGES), traced(model, DONORS)
    unpatched = logits_of(model, IMAGES)
    for name, parts in sets_for(model).items():
        slow = patch_parts_with_hooks(model, model, IMAGES, DONORS, parts)
        fast = patch_parts(model, own, Donor(model, given), parts)
        assert relative(fast, slow) < 1e-4, name
        if name == "class token at 0":  # the same in all images
            assert relative(slow, unpatched) < 1e-6
        elif name.startswith(("all", "embedding", "residual")):
            assert relative(slow, unpatched) > 1e-3, name
    assert hooks_left(model) == 0


@pytest.mark.parametrize("family", EVERY)
def test_the_engine_gives_what_hooks_give_between_two_models(family: str) -> None:
    model, donor = made(family), made(family, seed=7)
    own, given = traced(model, IMAGES), Donor(donor, traced(donor, DONORS))
    for name, parts in sets_for(model).items():
        slow = patch_parts_with_hooks(model, donor, IMAGES, DONORS, parts)
        assert relative(patch_parts(model, own, given, parts), slow) < 1e-4, name


@pytest.mark.parametrize("family", EVERY)
def test_a_part_patched_with_itself_changes_not_one_bit(family: str) -> None:
    model = made(family)
    own, again = traced(model, IMAGES), traced(model, IMAGES)
    unpatched = patch_parts(model, own, Donor(model, own), ())
    assert relative(unpatched, logits_of(model, IMAGES)) < 1e-5
    for name, parts in sets_for(model).items():
        assert torch.equal(patch_parts(model, own, Donor(model, again), parts), unpatched), name
        twin = Donor(made(family), again)
        assert torch.equal(patch_parts(model, own, twin, parts), unpatched), name


@pytest.mark.parametrize("family", EVERY)
def test_all_of_the_stream_is_the_donor_to_the_bit(family: str) -> None:
    """Whatever else is patched: what comes after a depth sees nothing but the stream there."""
    model = made(family)
    own, given = traced(model, IMAGES), Donor(model, traced(model, DONORS))
    wanted = patch_parts(model, given.trace, given, ())
    for depth in range(adapter(model).depth + 1):
        assert torch.equal(patch_parts(model, own, given, [Part(Kind.RESIDUAL, depth)]), wanted)
    assert torch.equal(patch_parts(model, own, given, [Part(Kind.EMBEDDING)]), wanted)
    assert relative(wanted, logits_of(model, DONORS)) < 1e-5
    assert relative(logits_of(model, IMAGES), wanted) > 1e-3


@pytest.mark.parametrize("family", EVERY)
def test_the_last_stream_is_the_donor_whatever_model_it_is_of(family: str) -> None:
    model, donor = made(family), made(family, seed=7)
    own, given = traced(model, IMAGES), Donor(donor, traced(donor, DONORS))
    last = [Part(Kind.RESIDUAL, adapter(model).depth)]
    with torch.inference_mode():
        assert torch.equal(patch_parts(model, own, given, last), adapter(model).classify(given.trace.leaving))


@pytest.mark.parametrize("family", EVERY)
def test_all_parts_together_are_the_donor(family: str) -> None:
    model = made(family)
    own, given = traced(model, IMAGES), Donor(model, traced(model, DONORS))
    kinds, wanted = kinds_of(model), logits_of(model, DONORS)
    writes: list[Kind] = [k for k in (Kind.ATTENTION, Kind.MLP) if k in kinds]
    writes = writes or [Kind.LAYER]
    everything = [Part(Kind.EMBEDDING), *map(Part, writes)]
    assert relative(patch_parts(model, own, given, everything), wanted) < 1e-5
    if isinstance(adapter(model), Heads) and Kind.LAYER in kinds:
        without = patch_parts(model, own, given, everything[1:])
        if getattr(model, "global_pool", "") == "token":  # which begins alike in all images, so that writes are all
            assert relative(without, wanted) < 1e-5
        else:
            assert relative(without, wanted) > 1e-3  # the recipient's embedding is still there
        whole = [Part(Kind.LAYER, layer) for layer in range(adapter(model).depth)]
        assert torch.equal(patch_parts(model, own, given, whole), without)


@pytest.mark.parametrize("family", EVERY)
def test_class_token_and_patch_tokens_are_the_stream(family: str) -> None:
    model = made(family)
    if Kind.CLASS_TOKEN not in kinds_of(model):
        with pytest.raises(InputError, match="cannot be told apart"):
            patch_parts(model, traced(model, IMAGES), Donor(model, traced(model, DONORS)), [Part(Kind.CLASS_TOKEN, 0)])
        return
    own, given = traced(model, IMAGES), Donor(model, traced(model, DONORS))
    for depth in range(adapter(model).depth + 1):
        halves = [Part(Kind.CLASS_TOKEN, depth), Part(Kind.PATCH_TOKENS, depth)]
        together = patch_parts(model, own, given, halves)
        assert torch.equal(together, patch_parts(model, own, given, [Part(Kind.RESIDUAL, depth)]))
        by_hooks = patch_parts_with_hooks(model, model, IMAGES, DONORS, halves)
        assert relative(by_hooks, together) < 1e-5


@pytest.mark.parametrize("family", EVERY)
def test_all_heads_of_a_layer_are_its_attention_but_for_the_bias(family: str) -> None:
    """Within one model the bias is the same; between two, it is the rest."""
    model, donor = made(family), made(family, seed=7)
    own = traced(model, IMAGES)
    kind = Kind.ATTENTION if isinstance(adapter(model), Heads) else Kind.LAYER
    for layer in range(adapter(model).depth):
        heads = [head_part(model, site) for site in sites_of(model, range(layer, layer + 1))]
        given = Donor(model, traced(model, DONORS))
        whole = patch_parts(model, own, given, [Part(kind, layer)])
        assert relative(patch_parts(model, own, given, heads), whole) < 1e-5
        other = Donor(donor, traced(donor, DONORS))
        bias = torch.as_tensor(bias_output(donor, layer)) - torch.as_tensor(bias_output(model, layer))
        without = [t - bias if i == layer else t for i, t in enumerate(other.trace.attention)]
        other.trace.attention[:] = without
        if kind is Kind.ATTENTION:
            whole = patch_parts(model, own, other, [Part(kind, layer)])
            assert relative(patch_parts(model, own, other, heads), whole) < 1e-4


@pytest.mark.parametrize("family", ["class token", "LayerScale", "swin", "resnet, basic", "plain"])
def test_rows_of_a_trace_are_patched_like_the_whole(family: str) -> None:
    model, rows = made(family), torch.tensor([2, 0])
    own, given = traced(model, IMAGES), traced(model, DONORS)
    for name, parts in sets_for(model).items():
        whole = patch_parts(model, own, Donor(model, given), parts)[rows]
        some = patch_parts(model, own.take(rows), Donor(model, given.take(rows)), parts)
        assert relative(some, whole) < 1e-4, name


@pytest.mark.parametrize("family", ["class token", "swin", "resnet, basic"])
def test_both_directions_of_what_adds_up_agree(family: str) -> None:
    """At the last depth nothing but the stream is left, and of nothing patched there is no effect."""
    model = made(family)
    own, given = traced(model, IMAGES), Donor(model, traced(model, DONORS))
    found = both_directions(model, own, given, [Part(Kind.RESIDUAL, adapter(model).depth)])
    gap = found.donor - found.recipient
    for effect in found.effects(lambda logits: logits):
        assert torch.equal(effect, gap)
    nothing = both_directions(model, own, given, ())
    assert all(float(e.abs().max()) == 0.0 for e in nothing.effects(lambda logits: logits))
    itself = both_directions(model, own, Donor(model, own), [Part(Kind.LAYER)])
    assert all(float(e.abs().max()) == 0.0 for e in itself.effects(lambda logits: logits.softmax(-1)))


def test_noising_is_denoising_with_the_roles_swapped() -> None:
    model, parts = tiny("three layers"), [Part(Kind.ATTENTION, 1), Part(Kind.MLP, 0)]
    own, given = traced(model, IMAGES), traced(model, DONORS)
    found = both_directions(model, own, Donor(model, given), parts)
    assert torch.equal(found.noised, patch_parts(model, given, Donor(model, own), parts))
    denoising, noising = found.effects(lambda logits: logits)
    assert torch.equal(denoising, found.denoised - found.recipient)
    assert torch.equal(noising, found.donor - found.noised)
    assert relative(denoising, noising) > 1e-3  # this model is not additive


def test_both_directions_agree_in_a_model_whose_paths_add_up() -> None:
    """Convolutions without rectifier or norm: the network is linear."""
    network: Any = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Linear(256, 3))
    model: Any = PlainNetwork(enlarged(network, 0).eval(), ["0", "1"], classifier=None, input_size=(3, 32, 32))
    own, given = traced(model, IMAGES), Donor(model, traced(model, DONORS))
    for part in (Part(Kind.HEAD, 0, 3), Part(Kind.HEAD, 1, 7)):
        denoising, noising = both_directions(model, own, given, [part]).effects(lambda logits: logits)
        torch.testing.assert_close(denoising, noising, rtol=1e-4, atol=1e-5)
        assert float(denoising.abs().max()) > 1e-2


def test_layers_that_run_are_those_from_the_first_part_on() -> None:
    model = tiny("three layers")
    assert layers_run(model, [Part(Kind.HEAD, 1, 0), Part(Kind.MLP, 2)]) == 2
    assert layers_run(model, [Part(Kind.ATTENTION)]) == 3
    assert layers_run(model, [Part(Kind.HEAD, 0, 0), Part(Kind.RESIDUAL, 2)]) == 1
    assert layers_run(model, [Part(Kind.RESIDUAL, 3)]) == layers_run(model, []) == 0


def test_parts_of_each_kind_of_model() -> None:
    names = [str(part) for part in parts_of(tiny("one layer"))]
    assert names == [
        "embedding", "all attention", "all MLPs", "all layers", "L0 attention", "L0 MLP", "L0", "class token at 0",
        "class token at 1", "patch tokens at 0", "patch tokens at 1", "residual stream at 0", "residual stream at 1",
    ]  # fmt: skip
    assert kinds_of(made("swin")) == [
        Kind.EMBEDDING, Kind.ATTENTION, Kind.MLP, Kind.LAYER, Kind.HEAD, Kind.RESIDUAL
    ]  # fmt: skip
    for family in ("resnet, basic", "convnext", "plain"):
        assert kinds_of(made(family)) == [Kind.EMBEDDING, Kind.LAYER, Kind.HEAD, Kind.RESIDUAL]
    assert kinds_of(made("adapted")) == [Kind.EMBEDDING, Kind.ATTENTION, Kind.HEAD, Kind.RESIDUAL]
    assert str(head_part(made("plain"), sites_of(made("plain"))[3])) == "L0C3"
    assert str(Part(Kind.HEAD, 7, 2)) == "L7H2"


@pytest.mark.parametrize(
    ("kind", "layer", "head"),
    [
        (Kind.HEAD, 0, None), (Kind.HEAD, None, 1), (Kind.MLP, 0, 1), (Kind.EMBEDDING, 0, None),
        (Kind.RESIDUAL, None, None), (Kind.CLASS_TOKEN, 1, 1),
    ],
)  # fmt: skip
def test_what_is_no_part_is_refused(kind: Kind, layer: int | None, head: int | None) -> None:
    with pytest.raises(InputError, match=f"part '{kind}'"):
        Part(kind, layer, head)


@pytest.mark.parametrize(
    "part",
    [Part(Kind.MLP, 2), Part(Kind.HEAD, 0, 4), Part(Kind.HEAD, 2, 0), Part(Kind.RESIDUAL, 3), Part(Kind.MLP, -1)],
)
def test_parts_that_a_model_has_not_are_refused(part: Part) -> None:
    model = tiny()
    own = traced(model, IMAGES)
    with pytest.raises(InputError, match="part '"):
        patch_parts(model, own, Donor(model, own), [part])


def test_a_pass_without_what_mlps_add_patches_no_mlp() -> None:
    model = tiny()
    own = record(model, IMAGES)
    for part in (Part(Kind.MLP, 1), Part(Kind.LAYER)):
        with pytest.raises(InputError, match="mlp=True"):
            patch_parts(model, own, Donor(model, own), [part])
    assert torch.equal(
        patch_parts(model, own, Donor(model, own), [Part(Kind.ATTENTION)]),
        patch_parts(model, own, Donor(model, own), ()),
    )


def test_a_prefix_that_is_shared_keeps_what_mlps_add() -> None:
    model = tiny("three layers")
    whole = traced(model, IMAGES)
    again = record(model, IMAGES, prefix=whole, start=2, mlp=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.mlp, again.mlp, strict=True))


def test_hooks_are_gone_after_an_exception() -> None:
    model = tiny()
    own, few = traced(model, IMAGES), traced(model, DONORS[:2])
    for part in (Part(Kind.MLP, 0), Part(Kind.HEAD, 0, 0), Part(Kind.CLASS_TOKEN, 1)):
        with pytest.raises((RuntimeError, InputError)):
            patch_parts(model, own, Donor(model, few), [part])
        with pytest.raises(RuntimeError):
            patch_parts_with_hooks(model, model, IMAGES, DONORS[:2], [part])
        assert hooks_left(model) == 0


@pytest.mark.parametrize("family", ["class token", "swin", "resnet, basic", "plain", "adapted"])
def test_a_name_is_that_of_one_part(family: str) -> None:
    model = made(family)
    for part in [*parts_of(model), *(head_part(model, site) for site in sites_of(model))]:
        assert parse_part(str(part)) == part


@pytest.mark.parametrize("name", ["", "L7 head", "attention", "L-1", "class token", "residual stream at last", "L1H"])
def test_what_names_no_part_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is none"):
        parse_part(name)


@pytest.mark.parametrize("family", ["class token", "resnet, basic"])
def test_parts_by_name_give_what_they_change(family: str) -> None:
    model = made(family)
    last = f"residual stream at {adapter(model).depth}"
    gap = (logits_of(model, DONORS) - logits_of(model, IMAGES)).double()
    for direction in ("denoising", "noising"):
        found = patch_by_name(model, IMAGES, DONORS, [last], direction=direction, scale="logit")
        assert (found.dtype, tuple(found.shape)) == (torch.float64, (3, 3))
        assert relative(found, gap) < 1e-4
        for part in ("all layers", "L1", last, (0, 1)):
            itself = patch_by_name(model, IMAGES, IMAGES, [part], direction=direction, scale="probability")
            assert float(itself.abs().max()) == 0.0
    one = patch_by_name(model, IMAGES, DONORS, [(1, 2)], scale="log_odds")
    torch.testing.assert_close(one, patch_heads(model, IMAGES, DONORS, [(1, 2)])[:, 0], rtol=1e-3, atol=1e-5)
    backward = patch_by_name(model, DONORS, IMAGES, [(1, 2)], scale="logit")
    assert torch.equal(patch_by_name(model, IMAGES, DONORS, [(1, 2)], direction="noising", scale="logit"), -backward)


@pytest.mark.parametrize(
    ("parts", "named"), [(["L9"], "part 'L9'"), ("L0H0", "parts"), ([3], "heads"), (["all of it"], "is none")]
)
def test_parts_by_name_are_checked(parts: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        patch_by_name(tiny(), IMAGES, DONORS, parts)


@pytest.mark.parametrize("family", ["class token", "resnet, basic"])
def test_a_sweep_of_parts_is_what_patching_them_one_by_one_gives(family: str) -> None:
    model, pixels = made(family), noise_pixels(6)
    parts, recipients, others = parts_swept(model), np.arange(3), np.arange(3, 6)
    kinds = [DonorKind("cross", model, others), DonorKind("placebo", model, recipients)]
    table = sweep_parts(model, pixels, recipients, kinds, parts=parts, outcomes={"first": 0})
    assert len(table) == 2 * 2 * 3 * len(parts)
    found = table.set_index(["donor_kind", "direction", "set", "position"])["p:first"].sort_index()
    images = as_input(model, pixels)
    as_they_are = logits_of(model, images).double().softmax(-1)[:, 0].numpy()
    for part in parts:
        for direction, base, sign in (("denoising", recipients, 1.0), ("noising", others, -1.0)):
            change = patch_by_name(model, images[:3], images[3:], [part], direction=direction, scale="probability")
            expected = as_they_are[base] + sign * change[:, 0].numpy()
            assert found.loc["cross", direction, str(part)].to_numpy() == pytest.approx(expected, abs=1e-5)
            itself = found.loc["placebo", direction, str(part)].to_numpy()
            assert itself == pytest.approx(as_they_are[recipients], abs=1e-6)


def test_an_audit_asks_all_attention_all_mlps_each_layer_and_tokens() -> None:
    assert [str(part) for part in parts_swept(made("class token"))] == [
        "all attention", "all MLPs", "L0", "L1", "class token at 1", "patch tokens at 1",
    ]  # fmt: skip
    assert {part.kind for part in parts_swept(made("resnet, basic"))} == {Kind.LAYER}
    assert parts_swept(made("plain")) == []  # every layer hands on all there is
