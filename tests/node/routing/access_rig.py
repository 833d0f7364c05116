"""Nodes with an access file, and what a node that has been broken into would send to another one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ringpost.internal.v1.forward_pb2 import ForwardedPublishRequest
from ringpost.node.access.tokens import token_hash
from ringpost.v1 import publish_pb2
from tests.integration.broker import Client, batch_of, publish
from tests.node.access.issuing import Issuer
from tests.node.routing.cluster import Nodes, running

ROLES = '[roles.all]\npublish = [">"]\nconsume = [">"]\n'


def principal(name: str, **grants: str) -> str:
    lines = [f'[principals.{name}]\ntokens = ["sha256:{token_hash(name)}"]']
    return "\n".join([*lines, *(f'{verb} = ["{pattern}"]' for verb, pattern in grants.items())])


class Rig(NamedTuple):
    nodes: Nodes
    issuer: Issuer
    file: Path
    channel: str  # led by n1

    def permit(self, *principals: str) -> None:
        """Only these from now on, and those of the issuer."""
        draft = self.file.with_suffix(".new")
        draft.write_text("\n".join([ROLES, *principals, self.issuer.section()]))
        draft.replace(self.file)

    async def renew(self) -> None:
        """All nodes take up what `permit` said."""
        for server in self.nodes.servers.values():
            await server.access.renew()

    def peer(self, node: str = "n1") -> Client:
        """As a node that has been broken into would call."""
        return Client(f"127.0.0.1:{self.nodes.servers[node].peer_port}")

    def end(self) -> int:
        return self.nodes.stored("n1", self.channel).end_offset


@asynccontextmanager
async def rigged(tmp_path: Path) -> AsyncIterator[Rig]:
    """Three nodes, with a writer and a reader of everything, whose tokens are their names."""
    issuer = Issuer(tmp_path / "keys.json")
    issuer.add("k1")
    issuer.publish()
    made = Rig(None, issuer, tmp_path / "access.toml", "")  # type: ignore[arg-type]
    made.permit(principal("writer", publish=">"), principal("reader", consume=">"))
    async with running(tmp_path, access_file=str(made.file)) as nodes:
        made = made._replace(nodes=nodes, channel=nodes.channel("n1"))
        request = publish_pb2.PublishRequest(channel=made.channel, batch=batch_of(b"first"))
        await nodes.clients["n2"].publisher.Publish(request, metadata=bearer("writer"))
        yield made


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def forwarded(rig: Rig, correlation: int, **fields: Any) -> bytes:
    """A batch as another node passes it on."""
    fields.setdefault("epoch", rig.nodes.world.epochs[rig.nodes.shard(rig.channel)])
    plain = publish(rig.channel, b"x", correlation=correlation).SerializeToString()
    return plain + ForwardedPublishRequest(**fields).SerializeToString()


async def answers(client: Client, *requests: bytes) -> dict[int, Any]:
    """What a peer's publish stream answers, by correlation; one stream for all of them."""
    call = client.raw_stream("ringpost.v1.PublisherService/PublishStream")(timeout=20)
    for request in requests:
        await call.write(request)
    found: dict[int, Any] = {}
    while len(found) < len(requests):
        response = publish_pb2.PublishStreamResponse.FromString(await call.read())
        found |= {result.correlation: result for result in response.results}
    call.cancel()
    return found
