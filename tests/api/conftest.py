"""The small world of the end-to-end tests: a cache of their own, a base that is trained on few faces."""

from tests.end_to_end.conftest import invoke, small_run, small_world

__all__ = ["invoke", "small_run", "small_world"]
