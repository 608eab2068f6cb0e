"""Control models that a team shares: listed, exported to a store, imported from one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from audit.api.progress import Callback, as_step
from audit.errors import InputError
from audit.given import as_path, check_kind
from audit.pipeline.share_controls import (
    StoredControls,
    cached_controls,
    export_folders,
    folders_of_run,
    import_stored,
    open_store,
    stored_controls,
)
from audit.remote import Place
from audit.signing import private_key, public_key
from audit.store import cache_folder, open_cache

__all__ = ["StoredControls", "export_controls", "import_controls", "list_controls"]


def list_controls(store: str | Path | None = None) -> list[StoredControls]:
    """Return the control models of a store, or of this machine's cache.

    Parameters
    ----------
    store : str or pathlib.Path, optional
        A folder, or an address that fsspec opens, as "s3://bucket/controls"; without it the cache is looked at.

    Returns
    -------
    list of StoredControls
        No signature is checked, and no model read, but for its hash where it lies in the cache.

    Raises
    ------
    InputError
        If the store holds none, or one that is not what its hash says.
    UnfinishedError
        If the store does not answer.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.list_controls("shared/none")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: shared/none: holds no control models; ...
    """
    return list(cached_controls(cache_folder()).values()) if store is None else stored_controls(_store(store))


def export_controls(
    store: str | Path, key: str | Path, *, run: str | Path | None = None, callback: Callback | None = None
) -> list[StoredControls]:
    """Copy trained and measured control models from this machine's cache to a store, and sign them.

    What the store holds already is not copied again. No image is among it.

    Parameters
    ----------
    store : str or pathlib.Path
        A folder, or an address that fsspec opens and writes to.
    key : str or pathlib.Path
        Ed25519 private key (PEM, not encrypted).
    run : str or pathlib.Path, optional
        The control models that this run used; all of the cache where not given.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    list of StoredControls
        What is in the store now, with the hashes to name them by.

    Raises
    ------
    InputError
        If the key is none, there is nothing to export, or what was imported has changed since.
    UnfinishedError
        If the store does not answer or cannot be written to.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.export_controls("shared", "none.pem")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: none.pem: cannot be read ...
    """
    place, private = _store(store), private_key(as_path("key", key))
    cache = cache_folder()
    folders = list(cached_controls(cache)) if run is None else folders_of_run(as_path("run", run), cache)
    if not folders:
        raise InputError(str(cache), "holds no control models", "run an audit first, or name it with VIT_AUDIT_CACHE")
    return export_folders(folders, place, private, as_step(callback))


def import_controls(
    store: str | Path,
    trust: str | Path | Sequence[str | Path],
    *,
    hashes: Sequence[str] = (),
    callback: Callback | None = None,
) -> list[StoredControls]:
    """Copy control models from a store into this machine's cache, where audits of the same backbone find them.

    Signatures and hashes are checked before anything is put there; an audit checks the hashes again.

    Parameters
    ----------
    store : str or pathlib.Path
        A folder, or an address that fsspec opens.
    trust : str or pathlib.Path, or several
        Ed25519 public keys (PEM) of those whose control models are taken.
    hashes : sequence of str
        Which are taken, by their SHA-256 or its first 12 digits at least; all where not given.
    callback : callable, optional
        Called with the name of a step, what is done of it, and in all.

    Returns
    -------
    list of StoredControls
        What is in the cache now, and what was left since versions differ: ``left`` says which.

    Raises
    ------
    InputError
        If one is not signed with a trusted key, its hash is unknown, a file is not what its hash says, other models
        of the same were trained here, or none fits the versions of this machine.
    UnfinishedError
        If the store does not answer, or the cache cannot be written to.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.import_controls("shared", "none.pem")
    Traceback (most recent call last):
        ...
    audit.errors.InputError: none.pem: cannot be read ...
    """
    place = _store(store)
    keys = [trust] if isinstance(trust, (str, Path)) else list(trust)
    trusted = [public_key(as_path("trust", key)) for key in keys]
    return import_stored(place, trusted, open_cache(), as_step(callback), hashes)


def _store(given: str | Path) -> Place:
    check_kind("store", given, (str, Path), "give a folder or an address")
    return open_store(given)
