"""TLS from certificate files, taken up anew when the files change; connections that stand go on as they are.

Clients meet the certificate of `tls_cert_file`. Nodes meet each other on the peer port with mutual TLS, by an authority
of their own: each shows a certificate whose name (a DNS name in its subject alternative names) is its node id, and
takes only such a one from whom it calls.
"""

import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from ringpost.node import log
from ringpost.node.config import Config

_STAMP = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """Certificate files cannot be used; the message names the setting and the file."""


class Certificate:
    """A certificate with its key and, if `ca_file` is named, the authority of the other side.

    Files that cannot be used are refused at the start with `TlsError`; later the ones before stay in use, which is
    logged. May be used from any thread.
    """

    def __init__(self, setting: str, cert_file: str, key_file: str, ca_file: str = "") -> None:
        """`setting` names the certificate's setting, for people."""
        self._setting = setting
        self._paths = (cert_file, key_file, *([ca_file] if ca_file else []))
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._read()
        self.version = 1

    def _look(self) -> _STAMP:
        try:
            found = [Path(path).stat() for path in self._paths]
        except OSError as error:
            raise TlsError(f"{self._setting}: cannot read {error.filename}: {error.strerror}") from error
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def _read(self) -> None:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._paths[0], self._paths[1])  # says whether they belong together
            if len(self._paths) > 2:
                context.load_verify_locations(self._paths[2])
            contents = [Path(path).read_bytes() for path in self._paths]
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise TlsError(f"{self._setting}: {', '.join(self._paths)} cannot be used: {reason}") from error
        self.chain, self.key, *rest = contents
        self.ca = rest[0] if rest else None

    def renew(self) -> bool:
        """Takes up files that have changed since; whether it did."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp == self._stamp:
                    return False
                self._stamp = stamp
                self._read()
            except TlsError as error:
                log.error("certificate.not_renewed", problem=str(error))
                return False
            self.version += 1
            log.info("certificate.renewed", setting=self._setting, version=self.version)
            return True

    def server(self, *, mutual: bool) -> grpc.ServerCredentials:
        """For a server's port; each new connection gets the certificate of its moment. `mutual`: clients show one."""

        def now() -> Any:
            return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.ca if mutual else None)

        seen = self.version

        def fetch() -> Any:
            nonlocal seen
            self.renew()
            if self.version == seen:
                return None
            seen = self.version
            return now()

        return grpc.dynamic_ssl_server_credentials(now(), fetch, require_client_authentication=mutual)

    def client(self) -> grpc.ChannelCredentials:
        """For a connection to a server of the authority."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.chain)


class Dialer:
    """Connections to other nodes' peer ports: in plain text without a certificate."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self._certificate = certificate

    @property
    def version(self) -> int:
        """Grows when connections that are made from now on show another certificate."""
        if self._certificate is None:
            return 0
        self._certificate.renew()
        return self._certificate.version

    def dial(self, node: str, address: str, settings: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """A channel to that node, and to no other that may answer there."""
        if self._certificate is None:
            return grpc.aio.insecure_channel(address, options=settings)
        self._certificate.renew()
        named = [*settings, ("grpc.ssl_target_name_override", node)]
        return grpc.aio.secure_channel(address, self._certificate.client(), options=named)


# Each needs the files behind it.
_NEEDS = {
    "tls_cert_file": ("tls_key_file",),
    "tls_key_file": ("tls_cert_file",),
    "tls_client_ca_file": ("tls_cert_file",),
    "peer_tls_cert_file": ("peer_tls_key_file", "peer_tls_ca_file"),
    "peer_tls_key_file": ("peer_tls_cert_file",),
    "peer_tls_ca_file": ("peer_tls_cert_file",),
}


def certificates(config: Config) -> tuple[Certificate | None, Certificate | None]:
    """What the client port shows, and what this node shows the others; None: plain text. Raises TlsError."""
    for name, needed in _NEEDS.items():
        lacking = [other for other in needed if getattr(config, name) and not getattr(config, other)]
        if lacking:
            raise TlsError(f"{name}: needs {' and '.join(lacking)} beside it")

    def made(*names: str) -> Certificate | None:
        files = [getattr(config, name) for name in names]
        return Certificate(names[0], *files) if files[0] else None

    return (
        made("tls_cert_file", "tls_key_file", "tls_client_ca_file"),
        made("peer_tls_cert_file", "peer_tls_key_file", "peer_tls_ca_file"),
    )


def peer_name(context: Any) -> str:
    """Who calls at the peer port, for the log: the names in its certificate, if there is one, and its address."""
    names = b", ".join(context.auth_context().get("x509_subject_alternative_name", ())).decode("utf-8", "replace")
    return f"node {names or '?'} at {context.peer()}"


def shows(context: Any, node: str) -> bool:
    """Whether the caller of a peer's method is that node, by its certificate; without TLS nobody can tell."""
    facts = context.auth_context()
    if facts.get("transport_security_type") != [b"ssl"]:
        return True
    return node.encode() in facts.get("x509_subject_alternative_name", ())
