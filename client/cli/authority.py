"""An authority that signs certificates, from its files or new; what `certs` makes is made here. Nothing is written."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ringpost.client.cli.local import LocalNodeError

_EARLIER = datetime.timedelta(minutes=5)  # clocks differ
# An authority cannot be renewed without all clients, so it lasts for long.
_DAYS_MIN, _TIMES = 3650, 10

HOW_ON = "bring back what is kept elsewhere, or use another directory for new authorities."


class Authority:
    """Signs certificates that clients check strictly (RFC 5280)."""

    def __init__(self, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey, where: str = "") -> None:
        """`where`: its certificate's file, for people."""
        self._cert, self._key, self._where = cert, key, where

    @classmethod
    def new(cls, name: str, days: int) -> Self:
        """One that lasts many times as long as what it signs for `days`."""
        key = ec.generate_private_key(ec.SECP256R1())
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=max(_DAYS_MIN, _TIMES * days))
        built = _builder(name, _name(name), key.public_key(), end)
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(built.add_extension(_usage(ca=True), critical=True).sign(key, hashes.SHA256()), key)

    @classmethod
    def of(cls, cert_file: Path, key_file: Path) -> Self | None:
        """From its files; None when neither is there. Raises `LocalNodeError` when one is missing or wrong."""
        there, missing = (cert_file, key_file) if cert_file.exists() else (key_file, cert_file)
        if not there.exists():
            return None
        if not missing.exists():
            raise LocalNodeError(f"{there} is there without {missing.name}: {HOW_ON}")
        try:
            cert = x509.load_pem_x509_certificate(cert_file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        except OSError as error:
            raise LocalNodeError(f"{error.filename} cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError) as error:
            raise LocalNodeError(f"{cert_file} and {key_file.name} cannot be used: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
            raise LocalNodeError(f"{key_file} is not {cert_file.name}'s key; only what `certs new` made can be used.")
        return cls(cert, key, str(cert_file))

    def pair(self) -> tuple[bytes, bytes]:
        """Its certificate and its key, as PEM."""
        return self._cert.public_bytes(serialization.Encoding.PEM), _pem_of_key(self._key)

    def end_of(self, days: int) -> datetime.datetime:
        """When a certificate ends that is made now. Raises `LocalNodeError` when the authority ends before."""
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        if end > self._cert.not_valid_after_utc:
            raise LocalNodeError(
                f"{self._where} ends on {self._cert.not_valid_after_utc:%Y-%m-%d}, before these certificates would: "
                "give fewer --days, or use another directory for new authorities."
            )
        return end

    def issue(self, name: str, hosts: Sequence[str], end: datetime.datetime) -> tuple[bytes, bytes]:
        """A certificate for these hosts and its key, as PEM; anew each time."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys(hosts)])
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        built = _builder(name, self._cert.subject, key.public_key(), end)
        built = built.add_extension(alternatives, critical=False).add_extension(purposes, critical=False)
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        built = built.add_extension(signer, critical=False).add_extension(_usage(ca=False), critical=True)
        made = built.sign(self._key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM), _pem_of_key(key)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    built = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=_name(name),
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=datetime.datetime.now(datetime.UTC) - _EARLIER,
        not_valid_after=end,
    )
    return built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, ca: bool) -> x509.KeyUsage:
    no = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False, **no
    )


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
