"""One place decides where is computed, and knows what accelerators lack; what is not there is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import audit
import vit_audit as va
from audit.api.running import check_options
from audit.cli import main
from audit.errors import InputError
from audit.models.device import (
    CPU,
    CUDA,
    DEVICES,
    MPS,
    computing_on,
    device_name,
    device_of,
    devices_here,
    held_on,
    in_double,
    kind_of_device,
    memory_of,
    numbered_devices,
    open_device,
    open_precision,
    resolve_device,
    seen_alone,
    send,
)  # fmt: skip
from audit.models.transforms import luma
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
CODE = Path(audit.__file__).parent
ABSENT = [name for name in (CUDA, MPS) if name not in devices_here()]
ACCELERATORS = [(True, True, CUDA), (True, False, CUDA), (False, True, MPS), (False, False, CPU)]


@pytest.mark.parametrize(("cuda", "mps", "first"), ACCELERATORS)
def test_auto_takes_cuda_else_mps_else_the_processor(
    cuda: bool, mps: bool, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine has all three: what torch sees is played."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == devices_here()[0] == first
    assert devices_here()[-1] == resolve_device(CPU) == CPU
    assert devices_here() == [name for name, there in ((CUDA, cuda), (MPS, mps), (CPU, True)) if there]


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_is_refused_in_a_line_that_names_what_is(name: str) -> None:
    net = va.wrap(tiny(), ["no", "maybe", "yes"])
    images = torch.zeros(1, 3, net.spec.image_size or 32, net.spec.image_size or 32)
    with pytest.raises(InputError, match=f"^--device: torch .* sees no {name} device, only .*cpu; choose ") as refused:
        open_device(name)
    assert "\n" not in str(refused.value)
    for ask in (
        lambda: net.predict([Image.new("RGB", (8, 8))], device=name),
        lambda: va.patch_heads(net, images, images, device=name),
        lambda: va.attribution(net, images, images, device=name),
        lambda: va.sweep(net, images, torch.tensor([0]), torch.tensor([0]), device=name),
    ):
        with pytest.raises(InputError, match=f"sees no {name} device"):
            ask()


def test_a_word_that_is_no_device_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--device: is 'gpu'; choose from auto, cpu, cuda, mps$"):
        resolve_device("gpu")


def test_several_devices_are_named_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch sees is played: no machine here has three accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert numbered_devices("cuda:0,cuda:2") == (0, 2)
    assert numbered_devices("cuda:1") == (1,)
    assert numbered_devices("cuda") == numbered_devices(CPU) == ()
    assert kind_of_device("cuda:2, cuda:0") == kind_of_device(CUDA) == CUDA
    assert seen_alone((0, 2)) == ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "2"})
    assert seen_alone((1,)) == seen_alone(()) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8f,7")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen_alone((1, 2))] == ["GPU-8f", "7"]
    for names, said in (
        ("cuda:0,cpu", "'cuda:0,cpu' is no list of cuda devices; name each as cuda:0,cuda:1"),
        ("cuda,cuda:1", "'cuda,cuda:1' is no list of cuda devices; name each as cuda:0,cuda:1"),
        ("cuda:1,cuda:1", "'cuda:1,cuda:1' names one twice; name each once: one process computes on each"),
        ("cuda:0,cuda:3", "'cuda:0,cuda:3' names more than the 3 there are; name each as cuda:0,cuda:1"),
    ):
        with pytest.raises(InputError) as refused:
            numbered_devices(names)
        assert str(refused.value) == f"--device: {said}"


def test_processes_share_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_options("cuda:0,cuda:1", workers=2)[0] == check_options("cuda", workers=1)[0] == CUDA
    with pytest.raises(InputError, match=r"^--workers: 2 processes cannot share one cuda device; leave it out$"):
        check_options(CUDA, workers=2)
    with pytest.raises(InputError, match=r"^--workers: 3 processes cannot share 2 cuda devices; leave it out$"):
        check_options("cuda:0,cuda:1", workers=3)


@pytest.mark.skipif(CUDA in devices_here(), reason="there is a CUDA device")
def test_run_refuses_several_devices_where_there_are_none() -> None:
    refused = CliRunner().invoke(main, ["run", "no such card", "--device", "cuda:0,cuda:1"])
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "sees no cuda device" in refused.stderr


@pytest.mark.parametrize("command", ["run", "check", "reproduce"])
def test_every_command_that_computes_takes_the_same_devices(command: str) -> None:
    (option,) = [p for p in main.commands[command].params if p.name == "device"]
    assert tuple(option.type.choices) == DEVICES
    given = ["x", "F-1"] if command == "reproduce" else ["x"]
    refused = CliRunner().invoke(main, [command, *given, "--device", "gpu"])
    assert refused.exit_code == 2
    assert "'auto', 'cpu', 'cuda', 'mps'" in refused.stderr


@pytest.mark.parametrize("name", ABSENT)
def test_check_and_run_refuse_a_device_before_anything_is_opened(name: str) -> None:
    for command in ("run", "check"):
        refused = CliRunner().invoke(main, [command, "no such card", "--device", name])
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
        assert f"sees no {name} device" in refused.stderr


def test_what_is_asked_of_the_processor_is_what_is_computed_by_default() -> None:
    net, generator = va.wrap(tiny(), ["no", "maybe", "yes"]), torch.Generator().manual_seed(3)
    side = noise_pixels(1).shape[1]
    images = torch.randn(4, 3, side, side, generator=generator)
    rows = torch.arange(4)
    pictures = [Image.fromarray(p) for p in noise_pixels(2)]
    for device in ("auto", CPU) if devices_here() == [CPU] else (CPU,):
        assert np.array_equal(net.predict(pictures), net.predict(pictures, device=device))
        for ask in (va.patch_heads, va.attribution):
            assert torch.equal(ask(net, images, images.flip(0)), ask(net, images, images.flip(0), device=device))
        assert torch.equal(
            va.sweep(net, images, rows, rows.flip(0)), va.sweep(net, images, rows, rows.flip(0), device=device)
        )


def test_less_than_float32_is_refused_where_it_is_not_computed() -> None:
    assert [open_precision("bf16", name) for name in (CPU, CUDA)] == [torch.bfloat16] * 2
    assert open_precision("float32", MPS) is torch.float32
    with pytest.raises(InputError, match=r"^--precision: bf16 is not computed on mps; leave it out"):
        open_precision("bf16", MPS)


def test_apples_accelerator_shares_the_memory_and_has_a_name() -> None:
    assert memory_of(torch.device(MPS)) == psutil.virtual_memory().total // 2
    assert memory_of(torch.device(CPU)) is None
    assert [device_name(torch.device(name)) for name in (CPU, MPS)] == ["CPU", "Apple GPU (MPS)"]


def test_models_are_where_they_were_afterwards_also_after_an_error() -> None:
    model, there = torch.nn.Linear(2, 2), torch.device("meta")
    with pytest.raises(ValueError, match="within"), held_on(torch.device(CPU), model):
        assert device_of(model).type == CPU
        raise ValueError("within")
    assert device_of(model).type == CPU
    elsewhere = torch.nn.Linear(2, 2, device=there)
    with held_on(there, elsewhere):
        assert device_of(elsewhere) == there
    assert device_of(elsewhere) == there
    with computing_on(CPU) as opened:
        assert opened == torch.device(CPU)


def test_doubles_are_made_on_the_processor_and_tensors_arrive() -> None:
    numbers = torch.tensor([0.1, 2.0])
    assert in_double(numbers).dtype is torch.float64
    assert in_double(numbers).device.type == CPU
    assert torch.equal(in_double(numbers), numbers.double())
    assert send(numbers, torch.device("meta"), pinned=True).device.type == "meta"


def test_luma_in_single_precision_is_pillows_for_all_bytes() -> None:
    """Its sums are whole numbers below 2**24."""
    steps = np.array([*range(0, 256, 15), 1, 2, 127, 254], dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    wanted = np.asarray(Image.fromarray(colours).convert("L"))
    images = torch.from_numpy(colours).permute(2, 0, 1).unsqueeze(0).float()
    assert np.array_equal(luma(images)[0, 0].numpy(), wanted)


def test_what_differs_between_devices_is_known_in_one_place() -> None:
    """Apple's accelerators have no double precision, and memory is pinned for CUDA alone."""
    asked = re.compile(r"\.double\(\)|pin_memory|non_blocking|cuda\.is_available|mps\.is_available")
    found = {
        path.relative_to(CODE).as_posix()
        for path in CODE.rglob("*.py")
        if any(asked.search(line) for line in path.read_text(encoding="utf-8").splitlines())
    }
    assert found == {"models/device.py"}
