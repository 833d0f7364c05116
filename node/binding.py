"""The node's ports: where they are, and what a stranger meets there."""

import grpc

from ringpost.cluster.view import NodeRef
from ringpost.node.config import Config
from ringpost.node.options import is_loopback, split_address
from ringpost.node.tls import Certificate


class StartError(Exception):
    """The node cannot start; the message is for the operator."""


class Ports:
    """`client` and `peer` are what was bound, 0 before and where there are no other nodes."""

    def __init__(self, config: Config, clients: Certificate | None, peers: Certificate | None) -> None:
        """What the node shows at each of them; None: plain text."""
        self.client = self.peer = self.shared = 0
        self._config = config
        self._clients, self._peers = clients, peers

    def bind(
        self, server: grpc.aio.Server, peer_server: grpc.aio.Server | None, shared_server: grpc.aio.Server | None = None
    ) -> NodeRef:
        """The node as others find it: by what it does not share. Raises StartError."""
        config = self._config
        mutual = bool(config.tls_client_ca_file)
        tls = self._clients.server(mutual=mutual) if self._clients is not None else None
        self.client = self._bind(server, "listen", config.listen, tls)
        address = config.advertised(self.client)
        if shared_server is not None:
            self.shared = self._bind(shared_server, "shared_listen", config.shared_listen, tls)
        if peer_server is None:
            return NodeRef(config.node, address, config.zone, host=config.host)
        peer_tls = self._peers.server(mutual=True) if self._peers is not None else None
        self.peer = self._bind(peer_server, "peer_listen", config.peer_listen, peer_tls)
        peer_address = config.peer_advertised(self.peer)
        return NodeRef(config.node, address, config.zone, peer_address, weight=config.weight, host=config.host)

    def _bind(self, server: grpc.aio.Server, name: str, address: str, tls: grpc.ServerCredentials | None) -> int:
        host, port = split_address(address)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if not (tls is not None or self._config.insecure or is_loopback(address)):
            raise StartError(
                f"{name}: {address} would serve other machines in plain text; "
                "say --insecure if that is meant, or listen on 127.0.0.1"
            )
        try:
            bound = server.add_secure_port(target, tls) if tls is not None else server.add_insecure_port(target)
        except RuntimeError:
            bound = 0
        if not bound:
            raise StartError(f"{name}: cannot bind {target}; is another program using the port?")
        return bound
