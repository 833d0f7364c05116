"""An issuer of signed tokens for tests: its keys, its key set, its tokens."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER = "https://id.example.com"
AUDIENCE = "ringpost"


class Issuer:
    """Keys by their ids; `publish` writes the public halves of those that are there."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys: dict[str, tuple[str, Any]] = {}

    def add(self, key_id: str, algorithm: str = "ES256") -> None:
        made: Any = ec.generate_private_key(ec.SECP256R1())
        if algorithm.startswith("RS"):
            made = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        self.keys[key_id] = algorithm, made

    def key_set(self) -> bytes:
        entries = []
        for key_id, (algorithm, key) in self.keys.items():
            kind: Any = jwt.algorithms.RSAAlgorithm if algorithm.startswith("RS") else jwt.algorithms.ECAlgorithm
            entries.append(kind.to_jwk(key.public_key(), as_dict=True) | {"kid": key_id, "use": "sig"})
        return json.dumps({"keys": entries}).encode()

    def publish(self) -> None:
        self.file.write_bytes(self.key_set())

    def token(self, key_id: str, subject: str = "alice", *, lives_s: float = 60, **claims: Any) -> str:
        """A claim that is given as None is left out."""
        algorithm, key = self.keys[key_id]
        now = time.time()
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": now + lives_s, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key, algorithm=algorithm, headers={"kid": key_id})

    def section(self, **more: str) -> str:
        """Its part of an access file."""
        lines = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": str(self.file), **more}
        return "\n".join(["[issuers.corp]", *(f"{name} = {json.dumps(value)}" for name, value in lines.items())])
