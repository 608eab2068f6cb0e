"""Control models that a team trains once: from one cache into a store, from there into others'.

In a store each file lies at ``sha256/HASH/NAME``, where HASH is its SHA-256, once however many name it. Control models
are a manifest that names their files, an in-toto Statement, and beside it a signature for each key, a DSSE envelope.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch

from audit.controls.control_models import BASE, RECIPE_VERSION, TRAINED, folder_of, key_of
from audit.controls.imported import MADE_OF, Imported, check_imported, mark_of, written_mark
from audit.errors import InputError
from audit.progress import Progress, Step
from audit.remote import Place, RemotePath, is_address
from audit.report.manifest import MANIFEST, manifest_rows
from audit.signing import envelope, is_signed, key_id, payload_of
from audit.store import UNFINISHED, atomic_write, file_hash, not_written, write_bytes, write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

BLOBS = "sha256"
STATEMENT_TYPE, PREDICATE_TYPE = "https://in-toto.io/Statement/v1", "urn:vit-audit:control-models:v1"
FILES = re.compile(r"\w[\w.-]*\.(safetensors|json|npz|parquet)", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{64}")
SIGNATURES = re.compile(r"manifest\.([0-9a-f]{64})\.dsse\.json")
LEAST_DIGITS = 12  # of a hash that is named by its beginning
LOG = "log.jsonl"  # of a run
MEASURED = "judged-*.json"


@dataclass(frozen=True)
class StoredControls:
    """The control models of a backbone with what was measured of them, in a cache or a store.

    Parameters
    ----------
    sha256 : str
        Of their manifest, which holds the hash of every file: what a store has them under.
    made_of : mapping
        All that makes them what they are: an audit that asks for the same finds them in its cache.
    files : mapping of str to str
        SHA-256 by name.
    sizes : mapping of str to int
        Bytes by name.
    measured : tuple of (str, str)
        Of each measurement of them the day, and the version of vit-audit.
    signed_by : tuple of str
        Names of the keys they are signed with; no signature is checked for this.
    left : str
        Why an import did not take them; "" where it did.

    Examples
    --------
    >>> import vit_audit as va
    >>> held = va.StoredControls(
    ...     sha256="0" * 64, made_of={"model": {"name": "vit_small_patch14_dinov2"}},
    ...     files={"base.safetensors": "1" * 64}, sizes={"base.safetensors": 88_000_000}, measured=(),
    ... )
    >>> held.model, held.models, held.size
    ('vit_small_patch14_dinov2', 1, 88000000)
    """

    sha256: str
    made_of: Mapping[str, Any]
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    measured: tuple[tuple[str, str], ...]
    signed_by: tuple[str, ...] = ()
    left: str = ""

    @property
    def key(self) -> str:
        """The hash of all that makes them."""
        return key_of(self.made_of)

    @property
    def model(self) -> str:
        """The name of the backbone."""
        return str(self.made_of["model"]["name"])

    @property
    def models(self) -> int:
        """How many models there are, their base included."""
        return sum(name.endswith(".safetensors") for name in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


def open_store(given: str | Path) -> Place:
    """Return a store: a folder, or an address that fsspec opens."""
    text = str(given)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return RemotePath(re.sub(":/+", "://", text, count=1).rstrip("/")) if is_address(text) else Path(text)


def cached_controls(cache: Path) -> dict[Path, StoredControls]:
    """Return the control models of a cache by folder; those whose training was interrupted are none."""
    found = {}
    for folder in sorted(cache.glob("controls-*")):
        if _is_whole(folder):
            found[folder], _ = describe(folder)
    return found


def folders_of_run(run: Path, cache: Path) -> list[Path]:
    """Return the folders of the control models that a run used.

    Raises
    ------
    InputError
        If the run does not say which, or they are not in the cache.
    """
    every = "export all that are in the cache: --all"
    try:
        lines = [json.loads(line) for line in (run / LOG).read_text(encoding="utf-8").splitlines()]
        keys = next(line["controls"] for line in lines if "controls" in line)
    except (OSError, ValueError, TypeError, StopIteration):
        raise InputError(str(run), "does not say which control models it used", every) from None
    folders = [folder_of(cache, key) for key in keys]
    for folder in folders:
        if not _is_whole(folder):
            fix = "name the cache that the run used with VIT_AUDIT_CACHE"
            raise InputError(str(run), f"its control models are not in the cache {cache}", fix)
    return folders


def describe(folder: Path) -> tuple[StoredControls, bytes]:
    """Return what a folder of control models holds, and its manifest.

    Raises
    ------
    InputError
        If something that was imported has changed.
    """
    signed_by = tuple(sorted({imported.signed_by for imported in check_imported(folder)}))
    measured = sorted(folder.glob(MEASURED))
    kept = [*folder.glob("*.safetensors"), *folder.glob("known-*.json"), *measured]
    kept += [path for verdict in measured for path in folder.glob(f"{verdict.stem}-*")]
    files = {path.name: path for path in sorted(kept) if FILES.fullmatch(path.name)}
    predicate = {
        "madeOf": json.loads((folder / MADE_OF).read_bytes()),
        "bytes": {name: path.stat().st_size for name, path in files.items()},
        "measured": sorted(map(_measured, measured)),
    }
    rows = [{"name": name, "digest": {"sha256": file_hash(path)}} for name, path in files.items()]
    made = {"_type": STATEMENT_TYPE, "subject": rows, "predicateType": PREDICATE_TYPE, "predicate": predicate}
    content = (json.dumps(made, indent=1, sort_keys=True) + "\n").encode()
    return replace(_read_manifest(content), signed_by=signed_by), content


def _measured(verdict: Path) -> tuple[str, str]:
    """Return when and by which version a measurement was made."""
    setup = json.loads(verdict.read_bytes()).get("setup") or {}
    return str(setup.get("measured_on", "")), str(setup.get("version", ""))


def _is_whole(folder: Path) -> bool:
    """Tell whether all models that were asked for are in a folder of control models."""
    try:
        wanted = [f"{condition['name']}.safetensors" for condition in json.loads((folder / TRAINED).read_bytes())]
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / MADE_OF).is_file() and any(folder.glob("imported-*.json"))
    return all((folder / name).is_file() for name in (MADE_OF, BASE, *wanted))


def _read_manifest(content: bytes) -> StoredControls:
    """Return what a manifest says.

    Raises
    ------
    ValueError
        If it is no manifest of control models.
    """
    files = manifest_rows(content)
    held = json.loads(content)
    try:
        predicate, kind = held["predicate"], held["predicateType"]
        found = StoredControls(
            hashlib.sha256(content).hexdigest(),
            dict(predicate["madeOf"]),
            files,
            {str(name): int(size) for name, size in predicate["bytes"].items()},
            tuple((str(day), str(version)) for day, version in predicate["measured"]),
        )
        known = bool(found.model) and kind == PREDICATE_TYPE and BASE in files
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("no manifest") from None
    named = all(FILES.fullmatch(name) and DIGEST.fullmatch(digest) for name, digest in files.items())
    if not (known and named) or {MADE_OF, TRAINED, MANIFEST} & files.keys() or found.sizes.keys() != files.keys():
        raise ValueError("no manifest")
    return found


def export_folders(
    folders: Sequence[Path], store: Place, private: Ed25519PrivateKey, step: Step
) -> list[StoredControls]:
    """Copy folders of control models to a store, signed; what it holds already is not copied again.

    Files come first, then the manifest and then its signature: an interrupted export leaves nothing that counts.
    """
    done = []
    signer = key_id(private.public_key())
    for folder in folders:
        held, manifest = describe(folder)
        progress = step(f"export: {held.model}")
        for number, (name, digest) in enumerate(held.files.items(), start=1):
            _send(folder / name, store / BLOBS / digest / name, held.sizes[name])
            progress(number, len(held.files))
        place = store / BLOBS / held.sha256
        _write(place / MANIFEST, manifest)
        _write(place / _signature(signer), envelope(manifest, private).encode())
        done.append(replace(held, signed_by=(signer,)))
    return done


def _signature(keyid: str) -> str:
    """Return the name of the file that holds a manifest's signature by a key."""
    return f"manifest.{keyid}.dsse.json"


def _send(path: Path, target: Place, size: int) -> None:
    """Copy a file to a store, where a whole one is not there yet."""
    if isinstance(target, RemotePath):
        if target.size() != size:
            target.upload(path)
    elif not target.is_file() or target.stat().st_size != size:
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)


def _write(target: Place, content: bytes) -> None:
    if isinstance(target, RemotePath):
        target.write_bytes(content)
    else:
        write_bytes(target, content)


def stored_controls(store: Place, hashes: Sequence[str] = ()) -> list[StoredControls]:
    """Return the control models of a store: all, or those whose hashes begin so.

    Raises
    ------
    InputError
        If there are none, or a manifest is not what its hash says.
    """
    signers: dict[str, set[str]] = {}
    try:
        manifests: list[Place] = sorted((store / BLOBS).rglob("manifest*.json"), key=str)
    except FileNotFoundError:  # no such bucket
        manifests = []
    for place in manifests:
        if match := SIGNATURES.fullmatch(place.name):
            signers.setdefault(place.parent.name, set()).add(match[1])
    found = [place.parent.name for place in manifests if place.name == MANIFEST]
    for asked in hashes:
        if len(asked) < LEAST_DIGITS or sum(name.startswith(asked) for name in found) != 1:
            fix = f"see what is there: vit-audit controls list {store}"
            raise InputError(str(store), f"holds no control models whose hash is {asked}", fix)
    chosen = [name for name in found if not hashes or name.startswith(tuple(hashes))]
    if not chosen:
        fix = "export some: vit-audit controls export RUN STORE --key KEY"
        raise InputError(str(store), "holds no control models", fix)
    return [replace(_opened(store, name), signed_by=tuple(sorted(signers.get(name, ())))) for name in chosen]


def _opened(store: Place, sha256: str) -> StoredControls:
    """Read a manifest of a store."""
    place = store / BLOBS / sha256 / MANIFEST
    content = place.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(str(place), "has another hash than its folder's name", "have them exported again")
    try:
        return _read_manifest(content)
    except ValueError:
        raise InputError(str(place), "is no manifest of control models", "have them exported again") from None


def import_stored(
    store: Place, trusted: Sequence[Ed25519PublicKey], cache: Path, step: Step, hashes: Sequence[str] = ()
) -> list[StoredControls]:
    """Copy control models from a store into a cache, once their signatures and hashes are known to be right.

    Those that were made with other versions than are installed here would never be found, and stay where they are.

    Raises
    ------
    InputError
        If one is not signed with a trusted key, or a file has another hash; nothing is copied then. If none fits.
    """
    chosen = [(held, _signer(store, held, trusted)) for held in stored_controls(store, hashes)]
    answer = []
    for held, signer in chosen:
        reason = _made_elsewhere(held)
        if reason and hashes:
            raise InputError(str(store), f"{held.sha256[:LEAST_DIGITS]} {reason}", "train them here, or export theirs")
        if not reason:
            _take(store, held, signer, cache, step(f"import: {held.model}"))
        answer.append(replace(held, signed_by=(signer,), left=reason))
    if all(held.left for held in answer):
        first = answer[0]
        raise InputError(str(store), f"holds none that fit: {first.sha256[:LEAST_DIGITS]} {first.left}", "train them")
    return answer


def _signer(store: Place, held: StoredControls, trusted: Sequence[Ed25519PublicKey]) -> str:
    """Return the trusted key that control models are signed with."""
    folder = store / BLOBS / held.sha256
    manifest = (folder / MANIFEST).read_bytes()
    for public in trusted:
        name = key_id(public)
        if name not in held.signed_by:
            continue
        try:
            payload, signatures = payload_of((folder / _signature(name)).read_bytes())
        except ValueError:
            continue
        if payload == manifest and is_signed(payload, signatures, public):
            return name
    others = ", ".join(name[:LEAST_DIGITS] for name in held.signed_by if name not in map(key_id, trusted))
    what = "is not signed with a key that you trust" + (f", but with {others}" if others else "")
    raise InputError(str(folder), what, "name the public key of whoever exported it: --trust PUBLIC.pem")


def _made_elsewhere(held: StoredControls) -> str:
    """Say by what an audit here would not find control models; "" if by nothing that is known beforehand."""
    here = {
        "recipe": ("version", RECIPE_VERSION),
        "torch": ("torch", torch.__version__),
        "timm": ("timm", timm.__version__),
        "threads": ("threads", torch.get_num_threads()),
    }
    for name, (part, own) in here.items():
        if held.made_of.get(part) != own:
            fix = f" (OMP_NUM_THREADS={held.made_of.get(part)} makes them the same)" if name == "threads" else ""
            return f"was made with {name} {held.made_of.get(part)}, and here is {own}{fix}"
    return ""


def _take(store: Place, held: StoredControls, signer: str, cache: Path, progress: Progress) -> None:
    """Copy control models into a cache, all or none."""
    folder, what = folder_of(cache, held.key), Imported(held.sha256, signer)
    check_imported(folder)
    for name, digest in held.files.items():
        if (folder / name).is_file() and file_hash(folder / name) != digest:
            fix = f"remove {folder} to take the store's, or go on with your own"
            raise InputError(str(folder / name), "is another than the store's of the same question", fix)
    lacking = [name for name in held.files if not (folder / name).is_file()]
    if not lacking and mark_of(folder, what).is_file():
        progress(1, 1)
        return
    staged = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=cache, prefix=f".{folder.name}.", suffix=UNFINISHED))
        for number, name in enumerate(lacking, start=1):
            _fetch(store / BLOBS / held.files[name] / name, staged / name, held.files[name])
            progress(number, len(lacking))
        write_text(staged / MADE_OF, json.dumps(held.made_of, sort_keys=True))
        write_text(staged / mark_of(folder, what).name, written_mark(what, held.files))
        _place(staged, folder)
    except OSError as error:
        raise not_written(folder, error) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def _fetch(source: Place, target: Path, digest: str) -> None:
    """Copy a file of a store, and look at its hash."""
    with atomic_write(target) as temporary:
        try:
            if isinstance(source, RemotePath):
                source.download(temporary)
            else:
                shutil.copyfile(source, temporary)
        except FileNotFoundError:
            raise InputError(str(source), "is not there, and belongs to it", "have them exported again") from None
        if file_hash(temporary) != digest:
            what = "has another hash than its manifest says, and is not taken"
            raise InputError(str(source), what, "have them exported again, by whom you trust")


def _place(staged: Path, folder: Path) -> None:
    """Put what was fetched into the cache: the whole folder, or file by file where there is one, the mark first."""
    if not folder.exists():
        staged.chmod(0o755)
        staged.replace(folder)
        return
    marks = sorted(staged.glob("imported-*.json"))
    for path in [*marks, *(path for path in sorted(staged.iterdir()) if path not in marks)]:
        path.replace(folder / path.name)
