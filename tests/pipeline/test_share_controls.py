"""Control models in a store: signed, named by their hashes, and taken by another cache whole and unchanged, or not."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import requests
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import vit_audit as va
from audit.controls.control_models import ControlModels
from audit.models.checkpoint import hash_state
from audit.signing import envelope, key_id, private_key
from audit.store import DAY, clear_unfinished, open_cache
from tests.controls.test_control_models import MODEL, SPEC, train
from tests.small_world import invoke

pytestmark = [pytest.mark.unit, pytest.mark.cluster]
BUCKET = "controls"
VERDICT = "judged-0123-2-4567.json"


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a pair of keys."""
    private = Ed25519PrivateKey.generate()
    paths = folder / f"{name}.pem", folder / f"{name}.public.pem"
    paths[0].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ControlModels:
    """Train control models in a cache, beside which their measurements lie."""
    models = train(tmp_path_factory.mktemp("cache"))
    (models.folder / VERDICT).write_text(json.dumps({"setup": {"measured_on": "2026-01-31", "version": "0.1.0"}}))
    (models.folder / VERDICT.replace(".json", "-blur.npz")).write_bytes(b"numbers")
    return models


class Team:
    """Two machines' caches, a store, and the key of who exports."""

    def __init__(self, place: Path, trained: ControlModels, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.caches, self.patch = place / "store", {"one": place / "one", "two": place / "two"}, monkeypatch
        self.private, self.public = keys(place, "team")
        shutil.copytree(trained.folder.parent, self.caches["one"])
        self.caches["two"].mkdir()

    def at(self, machine: str) -> Path:
        """Work with a machine's cache."""
        self.patch.setenv("VIT_AUDIT_CACHE", str(self.caches[machine]))
        return self.caches[machine]

    def exported(self) -> va.StoredControls:
        """Export what the first machine has; go to the second."""
        self.at("one")
        (held,) = va.export_controls(self.store, self.private)
        self.at("two")
        return held

    def manifest(self, held: va.StoredControls) -> Path:
        return self.store / "sha256" / held.sha256 / "manifest.json"

    def signature(self, held: va.StoredControls) -> Path:
        return self.manifest(held).with_name(f"manifest.{held.signed_by[0]}.dsse.json")

    def blob(self, held: va.StoredControls, name: str) -> Path:
        return self.store / "sha256" / held.files[name] / name


@pytest.fixture
def team(tmp_path: Path, trained: ControlModels, monkeypatch: pytest.MonkeyPatch) -> Team:
    return Team(tmp_path, trained, monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start an S3 server on loopback; return the address of a bucket there."""
    import s3fs

    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in (
        ("AWS_ENDPOINT_URL", address), ("AWS_ACCESS_KEY_ID", "one"), ("AWS_SECRET_ACCESS_KEY", "two"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("audit.remote.PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    requests.put(f"{address}/{BUCKET}", timeout=10).raise_for_status()
    yield f"s3://{BUCKET}/shared"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return every kind of store, one after the other."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return "memory://shared"
    return str(tmp_path / "store") if request.param == "folder" else f"file://{tmp_path / 'store'}"


def test_whoever_imports_has_the_same_models_and_trains_none(team: Team, trained: ControlModels, store: str) -> None:
    one = team.at("one")
    (exported,) = va.export_controls(store, team.private)
    assert (exported.model, exported.models) == (MODEL.name, 1 + len(trained.models))
    assert exported.measured == (("2026-01-31", "0.1.0"),)
    assert va.list_controls(store) == [exported]
    two = team.at("two")
    (imported,) = va.import_controls(store, team.public)
    assert imported == exported
    aside = ("/imported-", "/recipe.json", "/work/")  # the mark; what an audit asked for last; losses of trainings
    here, there = ({n: c for n, c in contents(f).items() if not any(a in n for a in aside)} for f in (two, one))
    assert here == there
    again = train(two)
    assert again.from_cache
    assert [(each.sha256, each.signed_by) for each in again.imported] == [(exported.sha256, exported.signed_by[0])]
    for name, model in trained.models.items():
        assert hash_state(model.state_dict()) == hash_state(again.models[name].state_dict())
    assert [held.sha256 for held in va.list_controls()] == [exported.sha256]


def test_exporting_and_importing_twice_changes_nothing(team: Team) -> None:
    held = team.exported()
    va.import_controls(team.store, team.public)
    before = {
        path: path.stat().st_mtime_ns
        for folder in (team.caches["two"], team.store)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("manifest")
    }
    team.exported()
    va.import_controls(team.store, [team.public], hashes=[held.sha256])
    va.import_controls(team.store, team.public, hashes=[held.sha256[:12]])
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(contents(team.store)) == len(set(held.files.values())) + 2  # a manifest and its signature


def test_further_measurements_come_along_and_no_model_is_stored_twice(team: Team) -> None:
    first = team.exported()
    va.import_controls(team.store, team.public)
    more = VERDICT.replace("4567", "89ab")
    next(team.at("one").glob("controls-*")).joinpath(more).write_text(json.dumps({"setup": None}), encoding="utf-8")
    second = team.exported()
    assert set(second.files) - set(first.files) == {more}
    assert len(contents(team.store)) == len(set(first.files.values())) + 2 + 1 + 2
    va.import_controls(team.store, team.public)
    (folder,) = team.caches["two"].glob("controls-*")
    assert (folder / more).is_file()
    assert {each.sha256 for each in train(team.caches["two"]).imported} == {first.sha256, second.sha256}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def renamed(team: Team, held: va.StoredControls) -> None:
    """Edit a manifest, and give its folder the name that it has now."""
    manifest = team.manifest(held)
    manifest.write_bytes(manifest.read_bytes().replace(b"2026-01-31", b"2026-01-30"))
    manifest.parent.rename(manifest.parents[1] / hashlib.sha256(manifest.read_bytes()).hexdigest())


def signed_again(team: Team, held: va.StoredControls, old: bytes, new: bytes) -> None:
    """Edit a manifest, and sign it with the team's own key."""
    content = team.manifest(held).read_bytes().replace(old, new)
    shutil.rmtree(team.manifest(held).parent)
    folder = team.store / "sha256" / hashlib.sha256(content).hexdigest()
    folder.mkdir()
    (folder / "manifest.json").write_bytes(content)
    signature = envelope(content, private_key(team.private))
    (folder / f"manifest.{held.signed_by[0]}.dsse.json").write_text(signature, encoding="utf-8")


def signed_by_another(team: Team, held: va.StoredControls) -> None:
    """Replace the signature by a stranger's, under the name of the team's key, and in it."""
    stranger, _ = keys(team.store.parent, "stranger")
    made = envelope(team.manifest(held).read_bytes(), private_key(stranger))
    own = key_id(private_key(stranger).public_key())
    team.signature(held).write_text(made.replace(own, held.signed_by[0]), encoding="utf-8")


def of_another_manifest(team: Team, held: va.StoredControls) -> None:
    team.signature(held).write_text(envelope(b"{}", private_key(team.private)), encoding="utf-8")


def half_signed(team: Team, held: va.StoredControls) -> None:
    made = json.loads(team.signature(held).read_bytes())
    made["signatures"][0]["sig"] = base64.b64encode(b"0" * 64).decode()
    team.signature(held).write_text(json.dumps(made), encoding="utf-8")


NO_MANIFEST = "is no manifest of control models"
UNSIGNED = r"is not signed with a key that you trust; name the public key"
TAMPERED: dict[str, tuple[Callable[[Team, va.StoredControls], object], str]] = {
    "an edited model": (lambda t, h: damage(t.blob(h, "gray.safetensors")), "gray.*has another hash than its manifest"),
    "the last file edited": (lambda t, h: damage(t.blob(h, max(h.files))), "has another hash than its manifest says"),
    "a model that is lacking": (lambda t, h: t.blob(h, "blur.safetensors").unlink(), "is not there, and belongs to it"),
    "a cut model": (lambda t, h: os.truncate(t.blob(h, "base.safetensors"), 99), "has another hash than its manifest"),
    "an edited manifest": (lambda t, h: damage(t.manifest(h)), "has another hash than its folder's name"),
    "a manifest of another name": (renamed, "is not signed with a key that you trust"),
    "no signature": (lambda t, h: t.signature(h).unlink(), UNSIGNED),
    "a damaged signature": (lambda t, h: t.signature(h).write_text("{}"), UNSIGNED),
    "another's signature": (signed_by_another, UNSIGNED),
    "a wrong signature": (half_signed, UNSIGNED),
    "a signature of something else": (of_another_manifest, UNSIGNED),
    "no manifest": (lambda t, h: shutil.rmtree(t.manifest(h).parent), "holds no control models; export some"),
    "a name that leads out": (
        lambda t, h: signed_again(t, h, b"blur.safetensors", b"../blur.safetensors"), NO_MANIFEST,
    ),
    "a name of the cache's own": (
        lambda t, h: signed_again(t, h, VERDICT.encode(), b"recipe.json"), NO_MANIFEST,
    ),
    "a program": (lambda t, h: signed_again(t, h, b"blur.safetensors", b"blur.pt"), NO_MANIFEST),
    "a statement of something else": (
        lambda t, h: signed_again(t, h, b"control-models:v1", b"control-models:v2"), NO_MANIFEST,
    ),
    "models of another recipe": (
        lambda t, h: signed_again(t, h, b'"condition_epochs": 1', b'"condition_epochs": 2'), "",
    ),
    "models of another torch": (
        lambda t, h: signed_again(t, h, torch.__version__.encode(), b"1.0"), r"holds none that fit: .*with torch 1\.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused_in_a_line_and_nothing_is_left(what: str, team: Team) -> None:
    held = team.exported()
    tamper, said = TAMPERED[what]
    tamper(team, held)
    done = invoke("controls", "import", team.store, "--trust", team.public)
    if not said:  # what is signed is taken for what it says it is, which no audit of this card asks for
        assert done.exit_code == 0
        assert not train(team.caches["two"]).from_cache
        return
    assert done.exit_code == 2
    *steps, line = done.stderr.splitlines()
    assert line.startswith(str(team.store))
    assert all(step.startswith("import: ") for step in steps)  # what is fetched is told of
    with pytest.raises(va.InputError, match=said):
        va.import_controls(team.store, team.public)
    assert list(team.caches["two"].iterdir()) == []


def test_another_key_or_an_unknown_hash_is_refused(team: Team) -> None:
    held = team.exported()
    _, other = keys(team.store.parent, "other")
    with pytest.raises(va.InputError, match=rf"{held.sha256}: is not signed .* but with {held.signed_by[0][:12]}"):
        va.import_controls(team.store, other)
    va.list_controls(team.store)
    for unknown in ("0" * 64, held.sha256[:11], ""):
        with pytest.raises(va.InputError, match=f"holds no control models whose hash is {unknown}; see what is there"):
            va.import_controls(team.store, team.public, hashes=[held.sha256, unknown])
    assert list(team.caches["two"].iterdir()) == []
    va.import_controls(team.store, [other, team.public])
    assert len(list(team.caches["two"].iterdir())) == 1


def test_models_of_other_versions_stay_where_they_are(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    held = team.exported()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    said = f"was made with threads {held.made_of['threads']}, and here is 77"
    with pytest.raises(va.InputError, match=f"{held.sha256[:12]} {said}"):
        va.import_controls(team.store, team.public, hashes=[held.sha256])
    fitting = team.at("one") / "controls-of-77"
    shutil.copytree(next(team.caches["one"].glob("controls-*")), fitting)
    made_of = {**held.made_of, "threads": 77}
    (fitting / "made-of.json").write_text(json.dumps(made_of, sort_keys=True), encoding="utf-8")
    va.export_controls(team.store, team.private)
    two = team.at("two")
    left = {each.made_of["threads"]: each.left for each in va.import_controls(team.store, team.public)}
    assert left[77] == ""
    assert left[held.made_of["threads"]].startswith(said)
    assert len(list(two.iterdir())) == 1


def test_models_that_were_trained_here_are_not_replaced(team: Team) -> None:
    team.exported()
    two = team.caches["two"]
    own = train(two).folder / "gray.safetensors"
    damage(own)
    before = contents(two)
    with pytest.raises(va.InputError, match=r"gray\.safetensors: is another than the store's .* remove .* or go on"):
        va.import_controls(team.store, team.public)
    assert contents(two) == before
    own.unlink()
    va.import_controls(team.store, team.public)
    assert train(two).from_cache


def test_an_imported_model_of_unknown_hash_is_refused_by_the_audit(team: Team) -> None:
    team.exported()
    va.import_controls(team.store, team.public)
    two = team.caches["two"]
    (model,) = two.rglob("gray.safetensors")
    damage(model)
    for ask in (lambda: train(two), va.list_controls, lambda: va.import_controls(team.store, team.public)):
        with pytest.raises(va.InputError, match=r"gray\.safetensors: was imported from a store, and has another hash"):
            ask()
    (mark,) = two.rglob("imported-*.json")
    mark.write_text("{}", encoding="utf-8")
    with pytest.raises(va.InputError, match="is damaged, so that nothing tells which models were imported"):
        train(two)
    shutil.rmtree(mark.parent)
    va.import_controls(team.store, team.public)
    assert train(two).from_cache


def test_two_who_import_at_once_have_one_whole_copy(team: Team) -> None:
    team.exported()
    failed: list[BaseException] = []

    def take() -> None:
        try:
            va.import_controls(team.store, team.public)
        except va.UnfinishedError as error:  # the other's folder came in between: the same command again
            failed.append(error)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) < len(threads)
    va.import_controls(team.store, team.public)
    assert len(list(team.caches["two"].iterdir())) == 1
    assert train(team.caches["two"]).from_cache


def test_what_a_killed_import_leaves_goes_after_a_day(team: Team) -> None:
    left = team.at("two") / ".controls-0123.abc.part"
    left.mkdir()
    (left / "gray.safetensors").write_bytes(b"half")
    assert open_cache() == team.caches["two"]
    assert left.is_dir()  # it may be at work
    os.utime(left, (0, 0))
    clear_unfinished(team.caches["two"], older_than=DAY)
    assert not left.exists()


def test_an_interrupted_training_is_not_exported(team: Team) -> None:
    one = team.at("one")
    (folder,) = one.glob("controls-*")
    (folder / "gray.safetensors").unlink()
    assert va.list_controls() == []
    with pytest.raises(va.InputError, match=f"{one}: holds no control models; run an audit first"):
        va.export_controls(team.store, team.private)
    assert not team.store.exists()


def test_the_command_line_says_what_there_is(team: Team) -> None:
    team.at("one")
    done = invoke("controls", "export", "--all", team.store, "--key", team.private)
    assert done.exit_code == 0, done.output
    listed = invoke("controls", "list", team.store)
    assert listed.stdout == done.stdout
    (held,) = va.list_controls(team.store)
    first, second = listed.stdout.splitlines()
    assert first.startswith(f"{MODEL.name} at {MODEL.image_size} px: {held.models} models, ")
    assert f"measured on 2026-01-31 by vit-audit 0.1.0; signed by {held.signed_by[0][:12]}" in first
    assert second.strip() == held.sha256
    team.at("two")
    assert invoke("controls", "list").stdout == ""
    taken = invoke("controls", "import", team.store, "--trust", team.public, "--hash", held.sha256)
    assert (taken.exit_code, taken.stdout) == (0, done.stdout)
    for places in ((), (team.store,), ("a", "b", "c")):
        assert invoke("controls", "export", *places, "--key", team.private).exit_code == 2
    nothing = invoke("controls", "export", team.store.parent, team.store, "--key", team.private)
    assert nothing.stderr.startswith(f"{team.store.parent}: does not say which control models it used; export all")


def test_a_store_that_cannot_be_opened_is_told_of_in_a_line(team: Team) -> None:
    team.at("one")
    with pytest.raises(va.InputError, match="nothing here opens 'nowhere://'"):
        va.export_controls("nowhere://shared", team.private)
    team.store.write_text("a file", encoding="utf-8")
    with pytest.raises(va.UnfinishedError, match="cannot be written"):
        va.export_controls(team.store, team.private)
    assert SPEC.donor_seeds == 2
