"""Authorities and certificates of tests, made when they are needed."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.wire.tls import SERVER_NAME, TlsFiles

DAY = datetime.timedelta(days=1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@dataclass
class Authority:
    """Signs what a test asks for."""

    name: str
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        builder = self._builder(self.name, self._key, False)
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey, expired: bool) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(_named(name)).issuer_name(_named(self.name))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        end = now - DAY if expired else now + DAY
        return builder.not_valid_before(now - 2 * DAY).not_valid_after(end)

    def issue(self, name: str = SERVER_NAME, *, expired: bool = False) -> tuple[bytes, bytes]:
        """Certificate and key in PEM, for both ends of a connection."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost")])
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = self._builder(name, key, expired).add_extension(names, critical=False)
        signed = builder.add_extension(uses, critical=False).sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM), _pem(key)

    def write(self, folder: Path, *, name: str = SERVER_NAME, expired: bool = False) -> TlsFiles:
        """A new certificate in `folder`, as a secret would be mounted; replaces what is there file by file."""
        folder.mkdir(exist_ok=True)
        cert, key = self.issue(name, expired=expired)
        for file, content in (("ca.crt", self.pem), ("tls.key", key), ("tls.crt", cert)):
            part = folder / f"{file}.new"
            part.write_bytes(content)
            part.replace(folder / file)
        return TlsFiles.folder(folder)
