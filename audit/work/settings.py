"""What of torch's settings results depend on, for processes that were not forked from the one that plans."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from audit.batching import limit_of_memory
from audit.process_state import run_state

_lasting = ExitStack()
atexit.register(_lasting.close)  # while torch is there to be told


@dataclass(frozen=True)
class TorchSettings:
    """What of torch's settings results depend on, and what was asked of memory."""

    deterministic: bool
    tf32: tuple[bool, bool]
    memory: int | None

    @classmethod
    def here(cls) -> TorchSettings:
        """Return those of this process."""
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return cls(torch.are_deterministic_algorithms_enabled(), tf32, limit_of_memory())

    def take(self) -> None:
        """Let this process have them, until it takes others or ends."""
        _lasting.close()
        _lasting.enter_context(self.taken())

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Let this process have them, for the length of a block."""
        with run_state(deterministic=self.deterministic, memory=self.memory, fail_in_time=False):
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.tf32
            yield


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """Let torch use so many threads, for the length of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
