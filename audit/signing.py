"""Signatures: Ed25519 (RFC 8032), in envelopes of DSSE v1.

What is signed is the type and the payload, with their lengths.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from audit.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAKE_KEYS = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


def private_key(key: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key (PEM, not encrypted).

    Raises
    ------
    InputError
        If it is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(_read(key, f"make one: {MAKE_KEYS}"), password=None)
    except (ValueError, TypeError) as error:
        raise InputError(str(key), f"no private key in PEM, or encrypted ({error})", f"make one: {MAKE_KEYS}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(str(key), "no Ed25519 key", f"make one: {MAKE_KEYS}")
    return private


def public_key(key: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key (PEM).

    Raises
    ------
    InputError
        If it is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(_read(key, "name the public key, in PEM"))
    except ValueError as error:
        fix = "name the public key, not the private one"
        raise InputError(str(key), f"no public key in PEM ({error})", fix) from None
    if not isinstance(public, Ed25519PublicKey):
        raise InputError(str(key), "no Ed25519 key", "name the public key that belongs to the signature")
    return public


def envelope(payload: bytes, private: Ed25519PrivateKey) -> str:
    """Return the envelope of a payload that is signed with a key."""
    signature = {
        "keyid": key_id(private.public_key()),
        "sig": base64.b64encode(private.sign(signed(payload))).decode("ascii"),
    }
    held = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode("ascii"),
        "signatures": [signature],
    }
    return json.dumps(held, indent=1) + "\n"


def payload_of(content: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return what an envelope holds: the payload, and key ids with signatures, none of which is checked.

    Raises
    ------
    ValueError
        If it is no envelope, or one of something else.
    """
    try:
        held = json.loads(content)
        payload, kind = base64.b64decode(held["payload"], validate=True), held["payloadType"]
        signatures = [(str(s["keyid"]), base64.b64decode(s["sig"], validate=True)) for s in held["signatures"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("is no DSSE envelope") from None
    if kind != PAYLOAD_TYPE:
        raise ValueError("holds no in-toto Statement")
    return payload, signatures


def is_signed(payload: bytes, signatures: list[tuple[str, bytes]], public: Ed25519PublicKey) -> bool:
    """Tell whether one of the signatures of a payload was made with a key."""
    from cryptography.exceptions import InvalidSignature

    for name, signature in signatures:
        if name != key_id(public):
            continue
        try:
            public.verify(signature, signed(payload))
        except InvalidSignature:
            continue
        return True
    return False


def signed(payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature is made over."""
    kind = PAYLOAD_TYPE.encode()
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def key_id(public: Ed25519PublicKey) -> str:
    """Name a key by the SHA-256 of its DER form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read(path: Path, fix: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", fix) from None
