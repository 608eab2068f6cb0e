"""Models trained side by side: each as if alone, whoever trains it; what fails keeps the others from nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.errors import DivergedError, MemoryExhaustedError, NotWrittenError
from audit.models.checkpoint import hash_state, started_from
from audit.models.finetune import Recipe, count_steps, finetune, make_views
from audit.models.side_by_side import Training, train_side_by_side
from audit.work.pool import Workers
from tests.limits import files_of_at_most
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


def planned(folder: Path, number: int, recipe: Recipe = RECIPE, **options: float) -> list[Training]:
    return [
        Training(f"{i}", tiny(classes=2, **options), VIEWS, TARGETS, recipe, folder / f"{i}.safetensors")
        for i in range(number)
    ]


def train(trainings: Sequence[Training], folder: Path, workers: int = 1) -> list[str]:
    """Train, and return the hashes of the models."""
    train_side_by_side(trainings, folder / "work", made_of={}, progress=quiet, workers=Workers(workers))
    assert torch.get_num_threads() == 4
    return [hash_state(training.model.state_dict()) for training in trainings]


def alone(threads: int) -> VisionTransformer:
    torch.set_num_threads(threads)
    model = tiny(classes=2)
    finetune(model, VIEWS, TARGETS, RECIPE)
    torch.set_num_threads(4)
    return model


@pytest.mark.parametrize("workers", [1, 2])
def test_each_model_is_trained_as_if_alone(workers: int, tmp_path: Path) -> None:
    trainings = planned(tmp_path, 3)
    assert set(train(trainings, tmp_path, workers)) == {hash_state(alone(1).state_dict())}
    assert {started_from(t.path) for t in trainings} == {hash_state(tiny(classes=2).state_dict())}
    assert not any(t.model.training for t in trainings)


@pytest.mark.parametrize(("models", "threads"), [(1, 4), (2, 1)])
def test_one_model_takes_all_threads_and_several_one_each(models: int, threads: int, tmp_path: Path) -> None:
    """So it is where all but one are there already, too."""
    train(planned(tmp_path, models), tmp_path)
    last = planned(tmp_path, models)[-1]
    last.path.unlink()
    train(planned(tmp_path, models), tmp_path)
    written = [path.read_text(encoding="utf-8") for path in (tmp_path / "work").glob("*.json")]
    assert written
    assert all(f'"threads": {threads},' in text for text in written)


def test_what_is_there_is_not_trained_again(tmp_path: Path) -> None:
    first = train(planned(tmp_path, 2), tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert train([replace(t, views=None) for t in planned(tmp_path, 2)], tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    planned(tmp_path, 2)[1].path.unlink()
    assert train(planned(tmp_path, 2), tmp_path, 2) == first


def test_what_is_random_in_training_is_the_same_whoever_trains(tmp_path: Path) -> None:
    one = train(planned(tmp_path / "1", 3, drop_rate=0.1), tmp_path / "1")
    two = train(planned(tmp_path / "2", 3, drop_rate=0.1), tmp_path / "2", 2)
    assert one == two
    assert len(set(one)) == 3
    assert set(one).isdisjoint(train(planned(tmp_path / "3", 3), tmp_path / "3"))


def test_progress_adds_up(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    train_side_by_side(planned(tmp_path, 3), tmp_path / "w", made_of={}, progress=lambda *n: seen.append(n))
    assert list(dict.fromkeys(seen)) == [(i, 3 * STEPS) for i in range(3 * STEPS + 1)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loss_that_is_no_number_is_named_and_the_others_are_trained(workers: int, tmp_path: Path) -> None:
    trainings = planned(tmp_path, 3)
    trainings[1] = replace(trainings[1], recipe=replace(RECIPE, learning_rate=1e9, warmup_share=0.0, epochs=9))
    with pytest.raises(DivergedError, match=r"the loss is .*lower training.learning_rate") as told:
        train(trainings, tmp_path, workers)
    assert told.value.__notes__ == ["in the task training of 1"]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["0.safetensors", "2.safetensors"]


def test_weights_that_cannot_be_written_are_named_and_half_of_them_are_not_there(tmp_path: Path) -> None:
    with files_of_at_most(10_000), pytest.raises(NotWrittenError, match=r"0.safetensors: cannot be written \(File too"):
        train(planned(tmp_path, 2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == []
    assert set(train(planned(tmp_path, 2), tmp_path)) == {hash_state(alone(1).state_dict())}


def test_where_memory_does_not_suffice_the_batch_size_is_named(tmp_path: Path) -> None:
    """Batches are not halved by what is free: the gradient would round otherwise."""
    trainings = planned(tmp_path, 2)

    def allocate(_part: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > 4:
            raise MemoryError

    trainings[0].model.blocks[1].mlp.fc1.register_forward_pre_hook(allocate)
    with pytest.raises(
        MemoryExhaustedError, match=r"^training of 0: memory does not suffice; lower training.batch_size"
    ):
        train(trainings, tmp_path)
