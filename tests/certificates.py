"""Certificates for tests, made by openssl: an authority, and what it signs."""

import shutil
import subprocess
from pathlib import Path

import pytest

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """One authority; its files are in `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl on the PATH to make certificates with")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, name
        self.file = folder / f"{name}.pem"
        subject = ("-subj", f"/CN={name}", "-days", "2")
        self._openssl("req", "-x509", *_CURVE, "-keyout", f"{name}.key", "-out", self.file.name, *subject)

    def issue(self, name: str, *hosts: str, as_: str = "") -> tuple[Path, Path]:
        """Certificate and key for DNS names and 127.0.0.1, in files called `as_` (default: `name`); anew each time."""
        stem = as_ or name
        names = ",".join(f"DNS:{host}" for host in (name, *hosts))
        extensions = self._folder / "extensions"
        extensions.write_text(f"subjectAltName=IP:127.0.0.1,{names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl("req", "-new", *_CURVE, "-keyout", "new.key", "-out", "new.csr", "-subj", f"/CN={name}")
        signing = ("-CA", self.file.name, "-CAkey", f"{self._name}.key", "-CAcreateserial", "-days", "2")
        self._openssl("x509", "-req", "-in", "new.csr", "-out", "new.pem", *signing, "-extfile", extensions.name)
        made = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        for draft, path in zip(("new.pem", "new.key"), made, strict=True):
            (self._folder / draft).replace(path)
        return made

    def _openssl(self, *arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)
