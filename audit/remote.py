"""Files of object stores, by address: what fsspec opens (``s3://``, ``gs://``, ``hf://``).

Images are read and never copied; control models that are shared are copied in both directions. What keeps a store
from answering for the moment is tried again, and then told in one line; all else is told at once.
"""

from __future__ import annotations

import errno
import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, TypeVar

from audit.errors import DataError, UnfinishedError
from audit.extras import needs

TRIES = 4  # of a request
PAUSE = 0.5  # seconds before the second; twice as long before each further one
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}  # seconds; of S3
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}  # what opens a scheme, and an extra brings
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/{1,2}(?=[^/])")  # a path has lost one of two slashes
CLOCK = "RequestTimeTooSkewed"
REFUSED = ("credential", "forbidden", "accessdenied", "invalidaccesskeyid", "signaturedoesnotmatch", "unauthorized")
# What may pass. Classes are known by their names, so that no store's library is imported to tell.
INTERRUPTED = {
    "TimeoutError", "Timeout", "ConnectionError", "gaierror",  # Python's, those of requests and urllib3
    "ClientConnectionError", "ClientPayloadError", "TransportError", "ProtocolError", "ChunkedEncodingError",
    "HTTPClientError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError", "ResponseParserError",
}  # fmt: skip
BUSY = {errno.EBUSY, errno.EAGAIN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN}
TOO_MUCH = ("slowdown", "throttl", "toomanyrequests", "too many requests", "limitexceeded", "requesttimeout")
STATUSES = {408, 425, 429, *range(500, 600)}  # of HTTP
ANSWER = TypeVar("ANSWER")


def is_address(text: str) -> bool:
    """Tell whether a text is the address of a store, as ``s3://bucket/faces.csv``."""
    return ADDRESS.match(text) is not None


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a store; has of :class:`pathlib.Path` what readers ask for.

    Parameters
    ----------
    address : str
    """

    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, below: str) -> RemotePath:
        return RemotePath(f"{self.address.rstrip('/')}/{below}")

    def __lt__(self, other: RemotePath) -> bool:
        return self.address < other.address

    @property
    def name(self) -> str:
        """The last part."""
        return self.address.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """How the name ends, with its point."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without that."""
        return Path(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return RemotePath(self.address.rstrip("/").rpartition("/")[0])

    def is_dir(self) -> bool:
        """Tell whether something lies below it."""
        return bool(self.asked(lambda files: files.isdir(self.address)))

    def is_file(self) -> bool:
        """Tell whether it is a file."""
        return bool(self.asked(lambda files: files.isfile(self.address)))

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the files below it whose names are as a pattern has it."""
        scheme = self.address.partition("://")[0]
        for found in self.asked(lambda files: files.find(self.address)):
            if fnmatch(found.rpartition("/")[2], pattern):
                yield RemotePath(found if is_address(found) else f"{scheme}://{found}")

    def read_bytes(self, start: int | None = None, stop: int | None = None) -> bytes:
        """Return its content, or a part of it."""
        return bytes(self.asked(lambda files: files.cat_file(self.address, start=start, end=stop)))

    def open(self, mode: str = "r", encoding: str | None = None, newline: str | None = None) -> IO[Any]:
        """Return its content as an opened file."""
        content = io.BytesIO(self.read_bytes())
        return content if "b" in mode else io.TextIOWrapper(content, encoding=encoding, newline=newline)

    def opened(self, use: Callable[[IO[bytes]], ANSWER]) -> ANSWER:
        """Return what ``use`` makes of the file, of which no more is read than it asks for."""

        def used(files: Any) -> ANSWER:
            with files.open(self.address, "rb") as file:
                return use(file)

        return self.asked(used)

    def size(self) -> int | None:
        """Return its size in bytes; None where there is no such file."""
        try:
            return int(self.asked(lambda files: files.info(self.address))["size"] or 0)
        except FileNotFoundError:
            return None

    def write_bytes(self, content: bytes) -> None:
        """Write it; what was there before is replaced."""
        self.asked(lambda files: files.pipe_file(self.address, content))

    def upload(self, path: Path) -> None:
        """Copy a file of this machine to it."""
        self.asked(lambda files: files.put_file(str(path), self.address))

    def download(self, path: Path) -> None:
        """Copy it to a file of this machine."""
        self.asked(lambda files: files.get_file(self.address, str(path)))

    def asked(self, question: Callable[[Any], ANSWER]) -> ANSWER:
        """Ask the store; what may pass is tried again: time-outs, connections, answers of 429 and from 500 on.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        DataError
            If the store refuses, what is asked cannot be, or nothing that opens the store is installed.
        UnfinishedError
            If it does not answer.
        """
        for tried in range(1, TRIES + 1):
            with self._told(last=tried == TRIES):
                return question(self._files())
            time.sleep(PAUSE * 2 ** (tried - 1))
        raise AssertionError("the last try returns or raises")

    def _files(self) -> Any:
        """Return the store; asked for each time, for one that was opened before a fork answers nobody after it."""
        import fsspec

        scheme = self.address.partition("://")[0]
        if scheme in PACKAGES:
            needs(PACKAGES[scheme], self.address, error=DataError)
        own = fsspec.config.conf.get(scheme, {})  # the user's, of fsspec's files and variables
        options = {"config_kwargs": TIMEOUTS} if PACKAGES.get(scheme) == "s3fs" and "config_kwargs" not in own else {}
        try:
            return fsspec.filesystem(scheme, **options)
        except (ValueError, ImportError) as error:
            what = f"nothing here opens '{scheme}://' ({' '.join(str(error).split())[:200]})"
            raise DataError(self.address, what, "use s3://, gs:// or hf://, or copy it to a disk") from None

    @contextmanager
    def _told(self, *, last: bool) -> Iterator[None]:
        """Say in a line why the store refuses; let what may pass pass, but the last time."""
        try:
            yield
        except (FileNotFoundError, DataError, UnfinishedError, MemoryError):
            raise
        except Exception as error:  # of a store's library, and those that it is made of, anything
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            if CLOCK in said or "clock" in said.lower():
                what = f"access is refused for this machine's clock ({said})"
                raise DataError(self.address, what, "set it by NTP") from error
            if isinstance(error, PermissionError) or any(word in said.lower() for word in REFUSED):
                fix = "correct the credentials (of S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
                raise DataError(self.address, f"access is refused ({said})", fix) from error
            if not _may_pass(error):
                fix = "correct the address, or the store's settings"
                raise DataError(self.address, f"cannot be read ({said})", fix) from error
            if last:
                fix = "run again when it does: what is done is kept"
                raise UnfinishedError(self.address, f"does not answer ({said})", fix) from error


def _may_pass(error: BaseException) -> bool:
    """Tell whether a store that fails so may answer the next time; of what an error was made from, too."""
    below = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & INTERRUPTED or (isinstance(error, OSError) and error.errno in BUSY) or _statuses(error) & STATUSES:
        return True
    return any(word in str(error).lower() for word in TOO_MUCH) or (below is not None and _may_pass(below))


def _statuses(error: BaseException) -> set[object]:
    """Return what of an error may be the status of an HTTP answer, wherever libraries keep it."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # of botocore
        return {answer.get("ResponseMetadata", {}).get("HTTPStatusCode")}
    kept = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    return {status for status in [*kept, getattr(answer, "status_code", None)] if isinstance(status, int)}


Place = Path | RemotePath
