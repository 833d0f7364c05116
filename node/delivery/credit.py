"""What a subscriber may still be sent. Pure."""


class CreditWindow:
    """Running totals since the subscription was opened: granted by the client, sent by the node.

    The client may lower a grant, even below what was sent; then nothing is sent until it is raised beyond.
    """

    __slots__ = ("granted_bytes", "granted_messages", "sent_bytes", "sent_messages")

    def __init__(self, messages: int = 0, size: int = 0) -> None:
        self.granted_messages = messages
        self.granted_bytes = size
        self.sent_messages = 0
        self.sent_bytes = 0

    def grant(self, messages: int, size: int) -> None:
        """Replaces both totals."""
        self.granted_messages = messages
        self.granted_bytes = size

    @property
    def messages(self) -> int:
        """Messages that may be sent now; not above 0: none."""
        return self.granted_messages - self.sent_messages

    @property
    def bytes(self) -> int:
        """Bytes that may be sent now. While above 0, at least one message may."""
        return self.granted_bytes - self.sent_bytes

    @property
    def open(self) -> bool:
        """Whether a message may be sent."""
        return self.granted_messages > self.sent_messages and self.granted_bytes > self.sent_bytes

    def sent(self, messages: int, size: int) -> None:
        """Takes what is sent off."""
        self.sent_messages += messages
        self.sent_bytes += size
