"""What a run changes of its process, and puts back when it ends, whatever it ends by."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from PIL import ImageFile

from audit.batching import arrow_in_one_heap, failing_in_time, freed_memory_kept, memory_limit

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def run_state(
    *,
    deterministic: bool = True,
    memory: int | None = None,
    threads: int | None = None,
    fail_in_time: bool = True,
) -> Iterator[None]:
    """Compute as a run does, for the length of a block; all is as it was before afterwards, also after an exception.

    Restored are: deterministic algorithms, threads, the random state (of accelerators in use too) and the precision of
    products of torch; what the C library does with freed memory; where Arrow takes its own; the limits of memory;
    filters of warnings; whether Pillow reads truncated images; and the environment variable that cuBLAS reads. Blocks
    may be nested.

    Parameters
    ----------
    deterministic : bool
        Refuse algorithms that give other bits every time.
    memory : int, optional
        Bytes that the process may hold; batches are cut to fit.
    threads : int, optional
        Of torch, on the processor; as many as before where not given.
    fail_in_time : bool
        Let an allocation fail that the machine has no room for. Not with an accelerator, whose driver maps more than
        there is.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(_put_back())
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(freed_memory_kept())
        stack.enter_context(arrow_in_one_heap())
        stack.enter_context(memory_limit(memory))
        if fail_in_time:
            stack.enter_context(failing_in_time())
        torch.use_deterministic_algorithms(deterministic)
        if threads is not None:
            torch.set_num_threads(threads)
        yield


@contextmanager
def _put_back() -> Iterator[None]:
    """Put back afterwards what a run sets of torch, Pillow and the environment."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    threads, truncated, cublas = torch.get_num_threads(), ImageFile.LOAD_TRUNCATED_IMAGES, os.environ.get(CUBLAS)
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        os.environ.pop(CUBLAS, None)
        if cublas is not None:
            os.environ[CUBLAS] = cublas
