"""Models trained side by side: each as if alone, progress added up, and an end to all where one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.errors import UnfinishedError
from audit.models.checkpoint import hash_state
from audit.models.finetune import Progress, Recipe, count_steps, finetune, make_views
from audit.models.side_by_side import train_side_by_side
from tests.models_for_tests import tiny, two_tones

pytestmark = pytest.mark.unit
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=1e-3, weight_decay=0.05, warmup_share=0.1, seed=0, train_blocks=1)
PIXELS, TARGETS = two_tones(24)
VIEWS = make_views(tiny(classes=2), [PIXELS], 1)
STEPS = count_steps(24, RECIPE)


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def quiet(_done: int, _total: int) -> None:
    pass


def training(model: VisionTransformer) -> Callable[[Progress], None]:
    def job(progress: Progress) -> None:
        finetune(model, VIEWS, TARGETS, RECIPE, progress=progress)

    return job


def test_each_model_is_trained_as_if_alone() -> None:
    torch.set_num_threads(1)
    alone = tiny(classes=2)
    finetune(alone, VIEWS, TARGETS, RECIPE)
    torch.set_num_threads(4)
    models = [tiny(classes=2) for _ in range(5)]
    train_side_by_side([training(m) for m in models], models, [STEPS] * 5, progress=quiet)
    assert {hash_state(m.state_dict()) for m in models} == {hash_state(alone.state_dict())}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("jobs", "dropout", "threads"), [(1, 0.0, 4), (2, 0.0, 2), (9, 0.0, 1), (9, 0.1, 4)])
def test_threads_are_shared_out(jobs: int, dropout: float, threads: int) -> None:
    seen: list[int] = []
    models = [tiny(drop_rate=dropout)] * jobs
    train_side_by_side(
        [lambda _progress: seen.append(torch.get_num_threads())] * jobs, models, [0] * jobs, progress=quiet
    )
    assert seen == [threads] * jobs


def test_progress_adds_up() -> None:
    seen: list[tuple[int, int]] = []
    models = [tiny(classes=2) for _ in range(3)]
    train_side_by_side([training(m) for m in models], models, [STEPS] * 3, progress=lambda *n: seen.append(n))
    assert seen == [(i, 3 * STEPS) for i in range(1, 3 * STEPS + 1)]


def test_what_ends_one_ends_all() -> None:
    steps: list[int] = []

    def endless(progress: Progress) -> None:
        for done in range(10**9):
            progress(done, 10**9)
            steps.append(done)

    def failing(_progress: Progress) -> None:
        while not steps:
            pass
        raise UnfinishedError("training", "the loss is nan", "lower it")

    with pytest.raises(UnfinishedError, match="the loss is nan"):
        train_side_by_side([endless, failing, endless, endless, endless], [tiny()], [1] * 5, progress=quiet)
    assert torch.get_num_threads() == 4
