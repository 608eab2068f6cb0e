"""Images in shards and in object stores: a real S3 server on loopback, which refuses, fails and cuts as stores do."""

from __future__ import annotations

import http.client
import io
import multiprocessing
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests

from audit.card.load import check_card
from audit.data import Samples
from audit.data.sources import RemoteSource
from audit.errors import CardError, DataError, InputError, UnfinishedError
from audit.records import LeftOut
from audit.remote import RemotePath, is_address
from audit.store import check_writable
from tests.data.faces import card_of, read, write_faces
from tests.data.test_hf import png, shard

pytestmark = [pytest.mark.unit, pytest.mark.cluster]
BUCKET = "faces"


class Flaky(BaseHTTPRequestHandler):
    """Passes requests on to the store, but for those that ``faults`` names: cut, slow or refused for the moment."""

    store: tuple[str, int]
    faults: list[tuple[str, str]]  # part of an address, and what befalls it once

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_any(self) -> None:
        fault = next((f for f in self.faults if self.command == "GET" and f[0] in self.path), None)
        if fault is not None:
            self.faults.remove(fault)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault is not None and fault[1].isdecimal():
            self.send_error(int(fault[1]))
            return
        if fault is not None and fault[1] == "skewed":
            self._answer(403, {}, b"<Error><Code>RequestTimeTooSkewed</Code><Message>clock</Message></Error>", "GET")
            return
        connection = http.client.HTTPConnection(*self.store)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read(), self.command, cut=fault is not None)
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, command: str, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        length = headers.get("Content-Length") or headers.get("content-length") if command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        if command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, int]]:
    """Start an S3 server on loopback."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def faults(moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Return what shall befall requests, empty at first; an empty bucket is there."""
    import s3fs

    found: list[tuple[str, str]] = []
    methods = {f"do_{method}": Flaky.do_any for method in ("GET", "PUT", "HEAD", "POST", "DELETE")}
    handler = type("Handler", (Flaky,), {"store": moto, "faults": found, **methods})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "two")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("audit.remote.PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    requests.post(f"http://{moto[0]}:{moto[1]}/moto-api/reset", timeout=10)
    requests.put(f"http://{moto[0]}:{moto[1]}/{BUCKET}", timeout=10).raise_for_status()
    yield found
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.shutdown()
    proxy.server_close()


def upload(moto: tuple[str, int], folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = path.relative_to(folder).as_posix()
            address = f"http://{moto[0]}:{moto[1]}/{BUCKET}/{key}"
            requests.put(address, data=path.read_bytes(), timeout=10).raise_for_status()


def tars(folder: Path, count: int = 48, shards: int = 2) -> None:
    """Write a WebDataset: PNG images with JSON and a class each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        with tarfile.open(folder / f"faces-{number:04d}.tar", "w") as tar:
            for n in range(number, count, shards):
                row = f'{{"gender": "{("female", "male")[n // 2 % 2]}", "person": "p{n}", "source": "x"}}'
                label = ("neutral", "happiness")[n % 2]
                for ending, content in (("png", png(n)), ("json", row.encode()), ("expression", label.encode())):
                    info = tarfile.TarInfo(f"{n:05d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def samples(root: Path, reader: str, path: str, **changes: Any) -> Samples:
    return read(root, card_of(root, reader=reader, path=path, **changes))


def same(one: Samples, other: Samples) -> None:
    pd.testing.assert_frame_equal(one.frame, other.frame)
    assert one.fingerprint == other.fingerprint


WRITERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "table": (write_faces, "faces.csv"),
    "huggingface": (lambda folder: [shard(folder / f"{n}.parquet", 24 * n, 24) for n in range(2)], ""),
    "webdataset": (tars, ""),
}


@pytest.mark.parametrize("reader", WRITERS)
def test_a_store_gives_what_a_folder_gives_and_leaves_nothing_here(
    reader: str, faults: list[tuple[str, str]], moto: tuple[str, int], tmp_path: Path
) -> None:
    write, name = WRITERS[reader]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    upload(moto, tmp_path / "data")
    here = samples(tmp_path / "data", reader, name or ".")
    before = sorted(tmp_path.rglob("*"))
    faults += [("", "503"), ("", "429"), (".png" if reader == "table" else "", "cut")]
    there = samples(tmp_path / "data", reader, f"s3://{BUCKET}/{name}".rstrip("/"))
    assert not faults
    same(here, there)
    key = here.frame["image"][3]
    np.testing.assert_array_equal(np.asarray(here.source.open(key)), np.asarray(there.source.open(key)))
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "card.yaml"] == [
        path for path in before if path.name != "card.yaml"
    ]


def opened(key: str) -> int:
    return len(RemoteSource(RemotePath(f"s3://{BUCKET}")).read(key))


@pytest.mark.usefixtures("faults")
def test_processes_that_were_forked_open_for_themselves(moto: tuple[str, int], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    upload(moto, tmp_path)
    assert opened("a.png") == len(png(0))
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(opened, ["a.png"] * 4, timeout=300)) == [len(png(0))] * 4


@pytest.mark.usefixtures("faults")
def test_an_object_that_was_cut_is_counted(moto: tuple[str, int], tmp_path: Path) -> None:
    write_faces(tmp_path)
    cut = tmp_path / "images" / "00-neutral.png"
    cut.write_bytes(cut.read_bytes()[:200])
    upload(moto, tmp_path)
    found = samples(tmp_path, "table", f"s3://{BUCKET}/faces.csv")
    assert [(row.kind, row.images) for row in found.quarantined] == [(LeftOut.DAMAGED, 1)]


def test_a_tar_file_that_was_cut_has_its_images_counted_or_is_refused(tmp_path: Path) -> None:
    tars(tmp_path)
    file = tmp_path / "faces-0001.tar"
    with tarfile.open(file) as tar:
        last = [member for member in tar if member.name.endswith(".png")][-1]
    file.write_bytes(file.read_bytes()[: last.offset_data + 20])
    found = samples(tmp_path, "webdataset", ".")
    assert len(found.frame) == 47
    with pytest.raises(DataError, match=r"^faces-0001/00047.png: .* \(20 of \d+ bytes\); upload the tar file again"):
        found.source.open(f"faces-0001/{last.name}")
    file.write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"faces-0001.tar: is no tar file .*; write it again, not compressed"):
        samples(tmp_path, "webdataset", ".")


def test_each_way_in_which_a_store_refuses_is_a_line(
    faults: list[tuple[str, str]], moto: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(tmp_path)
    upload(moto, tmp_path)
    table = f"s3://{BUCKET}/faces.csv"

    def told(kind: type[Exception], what: str, path: str = table) -> None:
        with pytest.raises(kind, match=what) as caught:
            samples(tmp_path, "table", path)
        assert "\n" not in str(caught.value)

    told(DataError, "^s3://faces/none.csv: no such table", f"s3://{BUCKET}/none.csv")
    told(DataError, r"^nosuch://x/a.csv: nothing here opens 'nosuch://'", "nosuch://x/a.csv")
    faults += [("faces.csv", "503")] * 20
    told(
        UnfinishedError, r"^s3://faces/faces.csv: does not answer \(.*\); run again when it does: what is done is kept"
    )
    faults[:] = [("faces.csv", "400")]
    told(DataError, r"^s3://faces/faces.csv: cannot be read \(.*\); correct the address, or the store's settings")
    faults[:] = [("faces.csv", "skewed")]
    told(DataError, r"^s3://faces/faces.csv: access is refused for this machine's clock \(.*\); set it by NTP")
    faults.clear()
    requests.post(f"http://{moto[0]}:{moto[1]}/moto-api/reset-auth", data=b"0", timeout=10)
    told(DataError, r"^s3://faces/faces.csv: access is refused \(.*\); correct the credentials")
    requests.post(f"http://{moto[0]}:{moto[1]}/moto-api/reset-auth", data=b"inf", timeout=10)


def answer_of_s3(status: int, code: str) -> Exception:
    error = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    made: Exception = import_module("botocore.exceptions").ClientError(error, "GetObject")
    return made


def below(error: Exception) -> Exception:
    """Return an error as s3fs makes it of the store's."""
    made = OSError(5, "of the store")
    made.__cause__ = error
    return made


PASSING: dict[str, Callable[[], Exception]] = {
    "503": lambda: answer_of_s3(503, "ServiceUnavailable"),
    "429": lambda: below(answer_of_s3(429, "TooManyRequestsException")),
    "slow down": lambda: answer_of_s3(400, "SlowDown"),
    "time-out": TimeoutError,
    "reset": lambda: ConnectionResetError(104, "reset"),
    "S3 is not reached": lambda: import_module("botocore.exceptions").EndpointConnectionError(endpoint_url="http://x"),
    "cut": lambda: import_module("aiohttp").ClientPayloadError("cut"),
    "not reached": lambda: requests.ConnectionError("no route"),
    "no name": lambda: socket.gaierror(-3, "try again"),
    "Google's 500": lambda: answer_of_http(500),
}
LASTING: dict[str, Callable[[], Exception]] = {
    "400": lambda: answer_of_s3(400, "InvalidBucketName"),
    "a redirect": lambda: below(answer_of_s3(301, "PermanentRedirect")),
    "a fault of the code": lambda: KeyError("size"),
    "a value": lambda: ValueError("cannot parse"),
    "Google's 400": lambda: answer_of_http(400),
}


def answer_of_http(status: int) -> Exception:
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError(f"status {status}", response=answer)


@pytest.mark.parametrize(
    ("make", "tries", "kind", "said"),
    [pytest.param(make, 4, UnfinishedError, "does not answer", id=name) for name, make in PASSING.items()]
    + [pytest.param(make, 1, DataError, "cannot be read", id=name) for name, make in LASTING.items()],
)
def test_only_what_may_pass_is_asked_again(
    make: Callable[[], Exception], tries: int, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.remote.PAUSE", 0.0)
    asked: list[int] = []

    def question(_files: Any) -> None:
        asked.append(1)
        raise make()

    with pytest.raises(kind, match=rf"^memory://faces.csv: {said} \("):
        RemotePath("memory://faces.csv").asked(question)
    assert len(asked) == tries


def test_what_cannot_lie_in_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"data.path: is the address of a store, which reader 'folder' does not open"):
        check_card({"data": {"reader": "folder", "path": "s3://b/x"}, "groups": {"g": {"column": "g"}}})
    for out in ("s3://bucket/runs", "gs://bucket/runs"):
        with pytest.raises(InputError, match=r"is an address, and runs lie on a disk: .*; name a folder"):
            check_writable(Path(out))
    assert not list(tmp_path.iterdir())
    assert [is_address(text) for text in ("s3://b/x", "hf://d/x", "C:/x", "a/b", "a:b")] == [
        True,
        True,
        False,
        False,
        False,
    ]
