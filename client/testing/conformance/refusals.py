"""Checks of errors that trying again cannot mend, and of credentials."""

import asyncio
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import grpc

from ringpost.client.testing.conformance.bench import Bench
from ringpost.client.testing.conformance.contract import Printed, odd_messages, require
from ringpost.client.testing.conformance.gate import Cut
from ringpost.client.testing.conformance.recorder import Recorder
from ringpost.client.testing.conformance.registry import LeftOut, check

_SOON_S = 10.0
_TOKEN = "token-of-the-conformance-check"
_SENTENCE = "The token is not known here."


async def refused(tap: Recorder, run: Any, words: str) -> str:
    """The run ends soon, with a code that is not 0, and says what the broker said (or, before that, `words`)."""
    async with run as program:
        errors = await program.failure(_SOON_S)
    said = [sentence for sentence in tap.sentences if sentence in errors]
    require(
        bool(said) or words in errors, f"the broker said {tap.sentences[:2]}; standard error: {errors.strip()[-500:]}"
    )
    return (said or [words])[0]


@check("error.invalid-argument")
async def invalid_argument(bench: Bench) -> str:
    """A bad channel name ends it at once, with a sentence that names the field."""
    tap = Recorder()
    async with bench.gate(tap) as gate:
        for run in (bench.publishing, bench.subscribing, bench.working):
            await refused(tap, run(gate.addresses[:1], "not a name"), "channel")
    return "publish, subscribe, work"


@check("error.not-found")
async def not_found(bench: Bench) -> str:
    """A channel that there is not ends it at once, with the broker's sentence."""
    if (await bench.mq.node.info()).limits.auto_create_channels:
        raise LeftOut("this cluster makes channels by first use")
    tap = Recorder()
    channel = bench.unused_name("missing")
    async with bench.gate(tap) as gate:
        for run in (bench.publishing, bench.subscribing, bench.working):
            said = await refused(tap, run(gate.addresses[:1], channel, count=20), "CHANNEL_NOT_FOUND")
        tries = len(tap.opens) + len(tap.batches)
    require(tries <= 9, f"{tries} requests of three runs for a channel that there is not")
    return said.replace(channel, "…")


@check("error.out-of-range")
async def out_of_range(bench: Bench) -> str:
    """An offset beyond the end ends it at once, with the broker's sentence."""
    tap = Recorder()
    channel = await bench.channel("out-of-range", odd_messages(5, seed=4))
    async with bench.gate(tap) as gate:
        run = bench.subscribing(gate.addresses[:1], channel, start=1_000_000)
        await refused(tap, run, "OUT_OF_RANGE")
    return "offset 1000000 of a channel that ends at 5"


@check("error.deleted")
async def deleted(bench: Bench) -> str:
    """A subscription to a channel that is deleted meanwhile ends, with the broker's sentence."""
    tap = Recorder()
    channel = await bench.channel("deleted", odd_messages(5, seed=7))
    async with bench.gate(tap) as gate, bench.subscribing(gate.addresses[:1], channel, count=6) as program:
        await program.until(lambda printed: len(printed.got) == 5, "received all that there is")
        await bench.mq.channels.delete(channel)
        errors = await program.failure(_SOON_S)
    require("CHANNEL_DELETED" in errors or any(s in errors for s in tap.sentences), f"standard error: {errors[-500:]}")
    return "CHANNEL_DELETED"


class _Doorkeeper(Recorder):
    """Lets nobody in without the token."""

    def call(self, path: str, metadata: dict[str, str]) -> None:
        super().call(path, metadata)
        if metadata.get("authorization") != f"Bearer {_TOKEN}":
            raise Cut(grpc.StatusCode.UNAUTHENTICATED, _SENTENCE)


@check("error.unauthenticated")
async def unauthenticated(bench: Bench) -> str:
    """UNAUTHENTICATED ends it at once, with the sentence of the status."""
    tap = _Doorkeeper()
    channel = await bench.channel("denied", odd_messages(5, seed=5), "workers")
    async with bench.gate(tap) as gate:
        for run in (bench.publishing, bench.subscribing, bench.working):
            started = run(gate.addresses[:1], channel, environ={"RINGPOST_TOKEN": "wrong"})
            await refused(tap, started, _SENTENCE)
    require(len(tap.calls) <= 60, f"{len(tap.calls)} calls with a token that is not known")
    return f"{len(tap.calls)} calls"


@check("security.tls-and-token")
async def tls_and_token(bench: Bench) -> str:
    """With RINGPOST_CA and RINGPOST_TOKEN every call goes over TLS and carries the token."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise LeftOut("no openssl on the PATH to make a certificate with")
    tap = _Doorkeeper()
    messages = odd_messages(20, seed=6)
    channel = await bench.channel("tls", messages, "workers")
    with tempfile.TemporaryDirectory() as folder:
        chain = await asyncio.to_thread(_certificate, openssl, Path(folder))
        environ = {"RINGPOST_CA": f"{folder}/ca.pem", "RINGPOST_TOKEN": _TOKEN}
        async with bench.gate(tap, tls=chain) as gate:
            runs = [
                bench.subscribing(gate.addresses[:1], channel, environ=environ, count=20),
                bench.working(gate.addresses[:1], channel, environ=environ, count=20),
                bench.publishing(gate.addresses[:1], channel, environ=environ, count=20),
            ]
            for run in runs:
                async with run as program:
                    printed: Printed = await program.success()
    require(len(printed.stored) == 20, "not everything was published")
    return f"{len(tap.calls)} calls"


def _certificate(openssl: str, folder: Path) -> tuple[bytes, bytes]:
    """Key and certificate of 127.0.0.1, made for this moment; its authority's is ca.pem. Blocks."""

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=conformance", "-days", "2")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
    run("req", "-new", *curve, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=localhost")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    run("x509", "-req", "-in", "node.csr", "-out", "node.pem", *signing, "-extfile", "names")
    return (folder / "node.key").read_bytes(), (folder / "node.pem").read_bytes()
