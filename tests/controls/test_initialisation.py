"""The same-initialisation gate: open for two seeds of one base, shut for strangers."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.controls.identities import rotated
from audit.controls.initialisation import (
    Drop,
    Models,
    Pair,
    Task,
    barrier,
    circuit_similarity,
    heads_match,
    interpolate,
    no_barrier,
    run_initialisation,
    same_base,
)
from audit.models.finetune import Recipe, finetune, make_views
from audit.models.predict import predict_logits
from tests.models_for_tests import noise_images, tiny, two_tones

pytestmark = pytest.mark.unit
PIXELS, TARGETS = two_tones(64, seed=5)
TASK = Task(PIXELS, TARGETS)


@cache
def trained(init: int, seed: int) -> VisionTransformer:
    """Train a tiny model on the toy, from an initialisation, with a seed."""
    pixels, targets = two_tones(48)
    model = tiny("three layers", classes=2, seed=init)
    recipe = Recipe(epochs=12, batch_size=8, learning_rate=1e-3, weight_decay=0.05, warmup_share=0.1, seed=seed)
    finetune(model, make_views(model, [pixels], None), targets, recipe)
    return model


def pair(recipient: VisionTransformer, donor: VisionTransformer, *, bases: tuple[str, str] = ("a", "a")) -> Pair:
    return Pair(recipient, donor, *bases)


def failed(*pairs: Pair) -> set[str]:
    controls = run_initialisation(pairs, TASK, "two models", layers=range(3))
    assert [c.id for c in controls] == [
        f"{k}:two models" for k in ("same_base", "heads_match", "barrier", "barrier_bound")
    ]
    assert all(c.kind == "initialisation" for c in controls)
    return {c.id.split(":")[0] for c in controls if not c.passed}


def test_both_models_of_each_test_have_learnt_the_toy() -> None:
    for model in (trained(0, 0), trained(0, 1), trained(1, 0)):
        assert (predict_logits(model, PIXELS).argmax(1) == TARGETS).mean() > 0.9


def test_two_seeds_from_one_base_pass() -> None:
    assert failed(pair(trained(0, 0), trained(0, 1))) == set()


def test_a_stranger_fails_by_its_heads_and_by_the_barrier() -> None:
    """The hash is no help against a base that was claimed wrongly; the weights themselves are."""
    assert failed(pair(trained(0, 0), trained(1, 0))) == {"heads_match", "barrier", "barrier_bound"}


def test_one_stranger_among_the_donors_is_enough() -> None:
    good, stranger = pair(trained(0, 0), trained(0, 1)), pair(trained(0, 0), trained(1, 0))
    for pairs in ((good, stranger), (stranger, good)):
        assert failed(*pairs) == {"heads_match", "barrier", "barrier_bound"}
    other_base = pair(trained(0, 0), trained(0, 1), bases=("a", "b"))
    assert failed(good, other_base) == {"same_base"}


def test_where_no_pair_knows_the_task_there_is_no_barrier_to_measure() -> None:
    """The answers are the opposite of what both models learnt."""
    wrong = Task(PIXELS, 1 - TARGETS)
    controls = run_initialisation([pair(trained(0, 0), trained(0, 1))], wrong, "two models", layers=range(3))
    assert [c.id.split(":")[0] for c in controls] == ["same_base", "heads_match"]


def test_models_are_asked_once_and_in_vain_never() -> None:
    """Where the recipient does not know the task there is no barrier, whatever the donor knows."""
    known, twin, unused = trained(0, 0), trained(0, 1), copy.deepcopy(trained(0, 1))
    stranger = tiny("three layers", classes=2, seed=9)
    passes = {model.patch_embed: 0 for model in (known, twin, unused, stranger)}

    def count(part: torch.nn.Module, *_: object) -> None:
        if part in passes:  # not a copy of it, on the way to another model
            passes[part] += 1

    handles = [part.register_forward_hook(count) for part in passes]
    task = Task(PIXELS, TARGETS)
    for pairs in ([pair(known, twin)], [pair(known, twin), pair(stranger, unused)]):
        run_initialisation(pairs, task, "models", layers=range(3))
    for handle in handles:
        handle.remove()
    assert list(passes.values()) == [1, 1, 0, 1]


def test_the_pass_through_frozen_blocks_is_done_once_and_for_those_alone_that_share_them() -> None:
    model, twin, stranger = trained(0, 0), copy.deepcopy(trained(0, 0)), trained(1, 0)
    with torch.no_grad():
        twin.blocks[2].mlp.fc1.weight.mul_(1.1)
    task = Task(PIXELS, TARGETS).after_frozen_blocks([model, twin], 2)
    assert task.start == 2
    assert task.after_frozen_blocks([twin, model], 2) is task
    apart = task.after_frozen_blocks([model, stranger], 2)
    assert (apart.start, apart.stream) == (0, None)
    np.testing.assert_array_equal(task.points(twin), Task(PIXELS, TARGETS).points(twin))


def test_another_base_fails_by_its_hash_alone() -> None:
    assert failed(pair(trained(0, 0), trained(0, 1), bases=("a", "b"))) == {"same_base"}
    assert same_base([pair(trained(0, 0), trained(0, 0), bases=("a", "b"))], Models("")).estimate.value == 0.0


def permuted(model: VisionTransformer, layer: int) -> VisionTransformer:
    """Return the same function with two heads of a layer in each other's place."""
    twin = copy.deepcopy(model)
    attention = twin.blocks[layer].attn
    order = torch.tensor([1, 0, 2, 3])
    with torch.no_grad():
        attention.qkv.weight.copy_(attention.qkv.weight.unflatten(0, (3, 4, 8))[:, order].flatten(0, 2))
        attention.qkv.bias.copy_(attention.qkv.bias.unflatten(0, (3, 4, 8))[:, order].flatten())
        attention.proj.weight.copy_(attention.proj.weight.unflatten(1, (4, 8))[:, order].flatten(1))
    return twin


def test_heads_in_each_others_place_do_not_match() -> None:
    model = trained(0, 0)
    twin = permuted(model, 1)
    with torch.inference_mode():
        torch.testing.assert_close(twin(noise_images(2)), model(noise_images(2)), atol=1e-4, rtol=1e-4)
    control = heads_match([pair(model, twin)], Models(""), range(3))
    assert control.estimate.value == pytest.approx(10 / 12)
    assert not control.passed
    assert heads_match([pair(model, twin)], Models(""), range(2, 3)).passed


def test_likeness_does_not_depend_on_the_coordinates_inside_a_head() -> None:
    model = tiny()
    found = circuit_similarity(model, rotated(model), 0)
    torch.testing.assert_close(found.diagonal(), torch.ones(4), atol=1e-5, rtol=0)
    assert heads_match([pair(model, rotated(model))], Models(""), range(2)).passed


def test_likeness_by_hand() -> None:
    """The factors' shortcut gives the cosines of the whole products."""
    a, b = tiny(), tiny(seed=1)

    def products(model: VisionTransformer, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (w[8 * head : 8 * head + 8] for w in model.blocks[0].attn.qkv.weight.detach().chunk(3))
        out = model.blocks[0].attn.proj.weight.detach()[:, 8 * head : 8 * head + 8]
        return q.T @ k, out @ v

    found = circuit_similarity(a, b, 0)
    for i, j in ((0, 0), (2, 3)):
        cosines = [
            torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0)
            for x, y in zip(products(a, i), products(b, j), strict=True)
        ]
        assert float(found[i, j]) == pytest.approx(float(sum(cosines) / 2), abs=1e-5)


def test_the_straight_line() -> None:
    a, b = tiny(), tiny(seed=1)
    for share, weight in ((0.0, a.head.weight), (1.0, b.head.weight), (0.5, (a.head.weight + b.head.weight) / 2)):
        torch.testing.assert_close(interpolate(a, b, share).head.weight, weight)
    assert torch.equal(a.head.weight, tiny().head.weight)  # the ends are left alone


def test_a_barrier_is_measured_from_the_worse_end() -> None:
    """From a good model to an untrained one accuracy falls to the untrained one's, which is no barrier."""
    model = trained(0, 0)
    good = TASK.points(model)
    assert barrier(pair(model, model), TASK, good, good).tolist() == [0.0] * len(good)
    flipped = copy.deepcopy(model)
    with torch.no_grad():
        flipped.head.weight.copy_(model.head.weight.flip(0))
        flipped.head.bias.copy_(model.head.bias.flip(0))
    drop = barrier(pair(model, flipped), TASK, good, TASK.points(flipped))
    assert drop.mean() <= 0  # the worse end knows nothing


def test_a_few_images_do_not_show_that_nothing_is_lost() -> None:
    """On six images a break could hide in the noise, so no break is shown and none is excluded."""
    good, other = trained(0, 0), trained(0, 1)
    lost = np.array([100.0, -100.0, 0.0, 0.0, 0.0, 0.0])
    shown, excluded = no_barrier([Drop(lost, known=50.0)], Task(PIXELS[:6], TARGETS[:6]), Models("two models"))
    assert (shown.passed, excluded.passed) == (True, False)
    assert (shown.judged, excluded.judged, excluded.threshold) == ("low", "high", 25.0)
    assert failed(pair(good, other)) == set()
