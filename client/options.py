"""Everything that can be set on a client, with its defaults."""

from dataclasses import dataclass

from ringpost.client.batch import MAX_BATCH_MESSAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times in seconds unless the name says otherwise. Raises `ValueError` for a value out of its range."""

    # How long a publish may take, reconnects and retries included.
    publish_timeout: float = 60.0
    # How long a batch waits for company. 0: it leaves at once; what arrives while a write is in flight joins the next.
    linger_ms: float = 0.0
    # A batch is closed at either bound. A single larger message goes alone. 1,000 messages of 128 bytes fit.
    max_batch_bytes: int = 256 * 1024
    max_batch_messages: int = 1_000
    # Published and not yet answered. `publish` waits above them, `publish_nowait` raises `BufferFull`.
    max_pending_messages: int = 200_000
    max_pending_bytes: int = 64 * 1024 * 1024
    # How long `connect` looks for a node that answers, and how long an admin call may take.
    connect_timeout: float = 10.0
    request_timeout: float = 10.0
    # How long `close` waits for handlers and answers, all together.
    close_timeout: float = 10.0
    # How long the leases of messages are kept for a loop over a subscription that reads no further.
    max_lease: float = 3_600.0
    # "direct": learns the cluster's nodes and goes straight to a channel's owner; any other node serves while that one
    # does not answer. "any": uses only the addresses that were given, such as those of a load balancer.
    routing: str = "direct"
    # Where the inbox for answers to requests is: "_inbox", or below it, such as "_inbox.shop" for who may manage and
    # consume only "_inbox.shop.>".
    inbox_prefix: str = "_inbox"
    # Whether the span in which something is published goes along (OpenTelemetry): as header `traceparent` of each
    # message, and with each batch that of its first message, so that spans of the nodes join. Not for `publish_many`.
    tracing: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch_messages <= MAX_BATCH_MESSAGES:
            raise ValueError(f"max_batch_messages: 1 to {MAX_BATCH_MESSAGES:,}, not {self.max_batch_messages}")
        for name in ("max_batch_bytes", "max_pending_messages", "max_pending_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, not {getattr(self, name)}")
        for name in ("publish_timeout", "connect_timeout", "request_timeout", "close_timeout", "max_lease"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: above 0, not {getattr(self, name)}")
        if self.routing not in ("direct", "any"):
            raise ValueError(f'routing: "direct" or "any", not {self.routing!r}')
        if self.inbox_prefix != "_inbox" and not self.inbox_prefix.startswith("_inbox."):
            raise ValueError(f'inbox_prefix: "_inbox" or below it, not {self.inbox_prefix!r}')
        if self.linger_ms < 0:
            raise ValueError(f"linger_ms: 0 or more, not {self.linger_ms}")
