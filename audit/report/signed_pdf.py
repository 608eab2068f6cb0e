"""The report with a signature in it: ``report.signed.pdf``, beside the PDF that anybody can print again.

A signature is appended to the bytes of ``report.pdf`` (PAdES, ETSI EN 319 142-1, through pyHanko), so the file begins
with them, and a second reviewer's signature is appended to the first's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.errors import InputError
from audit.extras import needs
from audit.report.manifest import PDF, SIGNED_PDF, check_kept, holds, write_manifest
from audit.store import write_bytes

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

PEM = b"-----BEGIN"
MAKE = "openssl req -x509 -newkey rsa:3072 -nodes -keyout key.pem -out certificate.pem -days 365"


@dataclass(frozen=True)
class SignWith:
    """Whose signature a PDF gets.

    Parameters
    ----------
    key : pathlib.Path
        A private key (PEM), or a PKCS#12 archive that holds the certificate, too.
    certificate : pathlib.Path, optional
        Of the key, and those that lead to its root after it (PEM); not with an archive.
    passphrase : bytes, optional
        Of an encrypted key or archive.
    """

    key: Path
    certificate: Path | None = None
    passphrase: bytes | None = None


def sign_pdf(run: Path, given: SignWith) -> Path:
    """Write a run's PDF with one more signature in it; returns the file, which the manifest then holds, too.

    Raises
    ------
    InputError
        If pyHanko is not installed, there is no PDF or it is not the manifest's, or key and certificate do not fit.
    """
    needs("pyhanko", "sign --pdf")
    from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
    from pyhanko.pdf_utils.reader import PdfFileReader
    from pyhanko.sign import PdfSignatureMetadata, signers
    from pyhanko.sign.fields import SigSeedSubFilter

    check_kept(run)
    signer = _signer(given)
    if not holds(run, PDF):
        raise InputError(str(run / PDF), "missing, or not the one that the manifest holds", "render the run again")
    plain, path = (run / PDF).read_bytes(), run / SIGNED_PDF
    before = path.read_bytes() if path.is_file() else b""
    content = before if before.startswith(plain) else plain
    number = len(PdfFileReader(io.BytesIO(content)).embedded_signatures) + 1
    about = PdfSignatureMetadata(field_name=f"Signature{number}", subfilter=SigSeedSubFilter.PADES)
    out = signers.PdfSigner(about, signer=signer).sign_pdf(IncrementalPdfFileWriter(io.BytesIO(content)))
    write_bytes(path, out.getvalue())
    write_manifest(run, only=[SIGNED_PDF])
    return path


def _signer(given: SignWith) -> Any:
    """Return what signs.

    Raises
    ------
    InputError
        If a file is no key or certificate, or the certificate is of another key.
    """
    from asn1crypto.keys import PrivateKeyInfo
    from asn1crypto.x509 import Certificate
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    from pyhanko.sign.signers import SimpleSigner
    from pyhanko_certvalidator.registry import SimpleCertificateStore

    key, certificates = _read_keys(given)
    as_der = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificates[0].public_key().public_bytes(*as_der) != key.public_key().public_bytes(*as_der):
        raise InputError(str(given.certificate or given.key), "is the certificate of another key", "name the key's own")
    first, *others = (Certificate.load(c.public_bytes(Encoding.DER)) for c in certificates)
    store = SimpleCertificateStore()
    store.register_multiple(others)
    private = PrivateKeyInfo.load(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    return SimpleSigner(signing_cert=first, signing_key=private, cert_registry=store)


def _read_keys(given: SignWith) -> tuple[PrivateKeyTypes, list[x509.Certificate]]:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

    content = _read(given.key)
    fix = f"check the passphrase, or make a key and its certificate: {MAKE}"
    try:
        if not content.startswith(PEM):
            key, own, others = pkcs12.load_key_and_certificates(content, given.passphrase)
            if key is None or own is None:
                raise ValueError("holds no key with its certificate")
            return key, [own, *others]
        key = load_pem_private_key(content, given.passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(str(given.key), f"no private key in PEM or PKCS#12, or encrypted ({error})", fix) from None
    if given.certificate is None:
        raise InputError(
            str(given.key), "is a key alone", f"name its certificate with --certificate, or make one: {MAKE}"
        )
    try:
        return key, x509.load_pem_x509_certificates(_read(given.certificate))
    except ValueError as error:
        raise InputError(str(given.certificate), f"no certificate in PEM ({error})", f"make one: {MAKE}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", f"make one: {MAKE}") from None
