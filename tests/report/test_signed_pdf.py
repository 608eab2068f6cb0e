"""The signed PDF: beside the one that is printed again, valid for whoever trusts the certificate."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from audit.errors import InputError
from audit.report.manifest import MANIFEST, PDF, SIGNED_PDF, hash_files, is_signed_pdf, manifest_rows, write_manifest
from audit.report.signed_pdf import SignWith, sign_pdf

from .examples import examples
from .run_folder import write_run

pytestmark = pytest.mark.unit
validation = pytest.importorskip("pyhanko.sign.validation", reason="needs the extra 'sign'")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", examples()["single_layer"])
    with pikepdf.new() as pdf:
        pdf.add_blank_page()
        pdf.save(folder / PDF)
    write_manifest(folder)
    return folder


class Person:
    """Somebody with a key and a certificate that nobody else vouches for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.key, now = generate_private_key(SECP256R1()), datetime.now(UTC)
        who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = x509.CertificateBuilder(who, who, self.key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        use = x509.KeyUsage(
            digital_signature=True, content_commitment=True, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        self.certificate = made.add_extension(use, critical=True).sign(self.key, hashes.SHA256())
        self.key_file, self.certificate_file = folder / f"{name}.pem", folder / f"{name}.certificate.pem"
        self.key_file.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.certificate_file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def archive(self, path: Path, passphrase: bytes) -> Path:
        lock = BestAvailableEncryption(passphrase)
        path.write_bytes(pkcs12.serialize_key_and_certificates(b"x", self.key, self.certificate, None, lock))
        return path


def statuses(content: bytes, *trusted: Person) -> list[Any]:
    from asn1crypto.x509 import Certificate
    from pyhanko.pdf_utils.reader import PdfFileReader
    from pyhanko_certvalidator import ValidationContext

    roots = [Certificate.load(person.certificate.public_bytes(Encoding.DER)) for person in trusted]
    signatures = PdfFileReader(io.BytesIO(content)).embedded_signatures
    return [validation.validate_pdf_signature(s, ValidationContext(trust_roots=roots)) for s in signatures]


def test_two_reviewers_sign_the_pdf_beside_the_one_that_is_printed(run: Path, tmp_path: Path) -> None:
    one, two = Person(tmp_path, "one"), Person(tmp_path, "two")
    plain = (run / PDF).read_bytes()
    assert sign_pdf(run, SignWith(one.key_file, one.certificate_file)) == run / SIGNED_PDF
    (first,) = statuses((run / SIGNED_PDF).read_bytes(), one)
    assert (first.bottom_line, first.trusted, first.intact) == (True, True, True)
    assert not statuses((run / SIGNED_PDF).read_bytes(), two)[0].trusted
    sign_pdf(run, SignWith(two.archive(tmp_path / "two.p12", b"open"), passphrase=b"open"))
    content = (run / SIGNED_PDF).read_bytes()
    assert [s.bottom_line for s in statuses(content, one, two)] == [True, True]
    assert (run / PDF).read_bytes() == plain
    assert content.startswith(plain)
    assert manifest_rows((run / MANIFEST).read_bytes()) == hash_files(run)
    changed = content.replace(b"/MediaBox", b"/MediaBex", 1)
    assert changed != content
    assert not statuses(changed, one, two)[0].intact


def test_a_signature_of_another_report_is_none_of_this_one(run: Path, tmp_path: Path) -> None:
    one = Person(tmp_path, "one")
    sign_pdf(run, SignWith(one.key_file, one.certificate_file))
    assert is_signed_pdf(run)
    with pikepdf.new() as pdf:
        pdf.add_blank_page(page_size=(300, 300))
        pdf.save(run / PDF)
    assert not is_signed_pdf(run)
    with pytest.raises(InputError, match=r"report\.pdf: missing, or not the one that the manifest holds"):
        sign_pdf(run, SignWith(one.key_file, one.certificate_file))
    write_manifest(run, only=[PDF])
    assert not (run / SIGNED_PDF).exists()
    assert manifest_rows((run / MANIFEST).read_bytes()) == hash_files(run)


def test_keys_that_do_not_fit_are_named_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    one, two = Person(tmp_path, "one"), Person(tmp_path, "two")
    archive = one.archive(tmp_path / "one.p12", b"open")
    before = hash_files(run)
    for given, what in (
        (SignWith(one.key_file, two.certificate_file), "two.certificate.pem: is the certificate of another key"),
        (SignWith(one.key_file), "one.pem: is a key alone"),
        (SignWith(one.certificate_file, one.certificate_file), "one.certificate.pem: no private key"),
        (SignWith(one.key_file, one.key_file), "one.pem: no certificate in PEM"),
        (SignWith(archive, passphrase=b"wrong"), "one.p12: no private key"),
        (SignWith(tmp_path / "none.pem"), "none.pem: cannot be read"),
    ):
        with pytest.raises(InputError) as caught:
            sign_pdf(run, given)
        assert what in str(caught.value)
        assert "\n" not in str(caught.value)
    assert hash_files(run) == before
