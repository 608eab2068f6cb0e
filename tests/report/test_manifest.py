"""The manifest and its signature: made with one key, refused with another, gone when the run changes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from audit.errors import InputError
from audit.report.manifest import (
    MANIFEST,
    SIGNATURE,
    check_kept,
    check_signature,
    hash_files,
    holds,
    manifest_rows,
    sign,
    write_manifest,
)
from audit.report.reviews import DECISIONS
from audit.signing import signed

from .examples import examples

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "tables").mkdir(parents=True)
    (folder / "audit.json").write_text(examples()["single_layer"].model_dump_json(), encoding="utf-8")
    (folder / "tables" / "a.csv").write_text("a", encoding="utf-8")
    write_manifest(folder)
    return folder


def keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    private = Ed25519PrivateKey.generate()
    paths = folder / f"{name}.pem", folder / f"{name}.public.pem"
    paths[0].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return paths


def test_every_file_is_in_it_but_itself_the_lock_and_links(run: Path) -> None:
    for name in (".lock", "half.part"):
        (run / name).write_text("", encoding="utf-8")
    (run / "link").symlink_to(run / "audit.json")
    write_manifest(run)
    subjects = json.loads((run / MANIFEST).read_text(encoding="utf-8"))["subject"]
    assert {s["name"]: s["digest"]["sha256"] for s in subjects} == hash_files(run)
    assert set(hash_files(run)) == {"audit.json", "tables/a.csv", "half.part"}


def test_a_signature_holds_for_its_key_and_manifest_alone(run: Path, tmp_path: Path) -> None:
    (private, public), (_, other) = keys(tmp_path), keys(tmp_path, "other")
    assert check_signature(run, public) == "there is no signature"
    assert sign(run, private) == run / SIGNATURE
    assert check_signature(run, public) is None
    assert "was not made with the key" in str(check_signature(run, other))
    write_manifest(run)
    assert check_signature(run, public) is None  # nothing has changed
    (run / MANIFEST).write_bytes((run / MANIFEST).read_bytes() + b" ")
    assert check_signature(run, public) == "is of another manifest.json"
    (run / "tables" / "a.csv").write_text("b", encoding="utf-8")
    write_manifest(run)
    assert check_signature(run, public) == "there is no signature"


def test_what_was_changed_behind_the_manifest_is_not_hashed_again(run: Path) -> None:
    (run / DECISIONS).write_text("one\ntwo\n", encoding="utf-8")
    check_kept(run)  # the manifest knows of none
    write_manifest(run)
    check_kept(run)
    (run / DECISIONS).write_text("one\ntwo\nthree\n", encoding="utf-8")
    check_kept(run)  # a review that was cut short
    for damaged in ("one\n", "one\ntwo", "one\ntoo\nthree\n", "two\none\n", ""):
        (run / DECISIONS).write_text(damaged, encoding="utf-8")
        with pytest.raises(InputError, match="decisions were changed or dropped"):
            check_kept(run)
    (run / DECISIONS).unlink()
    with pytest.raises(InputError, match="decisions were changed or dropped"):
        check_kept(run)
    (run / DECISIONS).write_text("one\ntwo\n", encoding="utf-8")
    (run / "audit.json").write_bytes((run / "audit.json").read_bytes() + b" ")
    check_kept(run, record=False)
    with pytest.raises(InputError, match=r"audit\.json: was changed after manifest\.json was written"):
        check_kept(run)
    (run / MANIFEST).write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="is no manifest"):
        check_kept(run)
    (run / MANIFEST).unlink()
    check_kept(run)


def test_files_that_were_not_written_again_keep_the_hash_they_had(run: Path) -> None:
    (run / "tables" / "a.csv").write_text("b", encoding="utf-8")
    (run / "evil.txt").write_text("x", encoding="utf-8")
    before = manifest_rows((run / MANIFEST).read_bytes())
    (run / "audit.json").write_bytes((run / "audit.json").read_bytes() + b"\n")
    assert not holds(run, "audit.json")
    write_manifest(run, only=["audit.json"])
    assert holds(run, "audit.json")
    after = manifest_rows((run / MANIFEST).read_bytes())
    assert after == before | {"audit.json": hash_files(run)["audit.json"]}
    (run / MANIFEST).unlink()
    write_manifest(run, only=["audit.json"])
    assert set(manifest_rows((run / MANIFEST).read_bytes())) == {"audit.json", "tables/a.csv", "evil.txt"}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"[" * 200_000, b'{"subject": [{"name": 1, "digest": {"sha256": "x"}}]}',
     b'{"subject": [{"name": null, "digest": {"sha256": "x"}}]}', b'{"subject": {}}', b'{"subject": [1]}', b"\xff"],
)  # fmt: skip
def test_what_is_no_manifest(run: Path, content: bytes) -> None:
    if content != b'{"subject": {}}':
        with pytest.raises(ValueError, match="no manifest"):
            manifest_rows(content)
        (run / MANIFEST).write_bytes(content)
        with pytest.raises(InputError, match="is no manifest"):
            check_kept(run)
        with pytest.raises(InputError, match="is no manifest"):
            write_manifest(run, only=["audit.json"])


def test_the_envelope_is_dsse(run: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    sign(run, private)
    envelope = json.loads((run / SIGNATURE).read_text(encoding="utf-8"))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert base64.b64decode(envelope["payload"]) == (run / MANIFEST).read_bytes()
    assert signed(b"hello") == b"DSSEv1 28 application/vnd.in-toto+json 5 hello"
    assert check_signature(run, None) is None
    whole = (run / SIGNATURE).read_text(encoding="utf-8")
    keyid = envelope["signatures"][0]["keyid"]
    (run / SIGNATURE).write_text(whole.replace(keyid, "0" + keyid[1:] if keyid[0] != "0" else "1" + keyid[1:]))
    assert "was not made with the key" in str(check_signature(run, public))
    (run / SIGNATURE).write_text(whole.replace('"payload": "', '"payload": "A'))
    assert check_signature(run, None) is not None
    (run / SIGNATURE).write_text(whole.replace("in-toto+json", "another+json"))
    assert check_signature(run, None) == check_signature(run, public) == "holds no in-toto Statement"
    for damaged in ("{}", "garbage", "[" * 200_000):
        (run / SIGNATURE).write_text(damaged, encoding="utf-8")
        for key in (None, public):
            assert check_signature(run, key) == "is no DSSE envelope"


def test_what_is_no_key_is_refused_in_a_line(run: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    wrong = tmp_path / "wrong.pem"
    curve = generate_private_key(SECP256R1())
    with pytest.raises(InputError, match="cannot be read"):
        sign(run, tmp_path / "none.pem")
    for content, what in (
        (b"text", "no private key"),
        (curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "no Ed25519 key"),
        (public.read_bytes(), "no private key"),
    ):
        wrong.write_bytes(content)
        with pytest.raises(InputError, match=what):
            sign(run, wrong)
    with pytest.raises(InputError, match="no public key"):
        check_signature(run, private)
    wrong.write_bytes(curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(InputError, match="no Ed25519 key"):
        check_signature(run, wrong)
