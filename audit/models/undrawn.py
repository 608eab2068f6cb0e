"""Models that are made without drawing weights which nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = {
    "uniform_", "normal_", "trunc_normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
    "xavier_normal_",
}  # fmt: skip
FILLS = DRAWS | {"mul_", "add_", "clamp_"}  # and what is then made of the drawn: of no use without memory


class Undrawn(TorchFunctionMode):
    """Leaves a tensor as it is where it would be filled with random numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if named in FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if named in DRAWS or tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Make tensors on the "meta" device: shapes and types, no numbers."""
    with torch.device("meta"), Undrawn():
        yield
