"""A group's configuration, and its defaults and bounds."""

from dataclasses import dataclass, replace

from ringpost.node.groups.core import NO_POLICY
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.shard.retry_settings import policy_of, retry_message
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig

ACK_DEADLINE_MS = 30_000
ACK_DEADLINE_MS_MIN, ACK_DEADLINE_MS_MAX = 1_000, 43_200_000
MAX_IN_FLIGHT = 100_000
MAX_IN_FLIGHT_MAX = 1_000_000
DEAD_LETTER_AGE_MS = 14 * 86_400_000
DEAD_LETTER_BYTES = 1 << 30
MAX_CONSUMERS, MAX_CONSUMERS_MAX = 1_000, 10_000
CONSUMER_EXPIRY_MS = 7 * 86_400_000
CONSUMER_EXPIRY_MS_MIN, CONSUMER_EXPIRY_MS_MAX = 60_000, 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """A group's configuration."""

    ack_deadline_ms: int = ACK_DEADLINE_MS
    max_in_flight: int = MAX_IN_FLIGHT
    policy: RetryPolicy = NO_POLICY
    dead_letter_age_ms: int = DEAD_LETTER_AGE_MS
    dead_letter_bytes: int = DEAD_LETTER_BYTES
    mode: GroupMode.ValueType = GroupMode.GROUP_MODE_SHARED
    expired_to_dead_letters: bool = False
    max_consumers: int = MAX_CONSUMERS
    consumer_expiry_ms: int = CONSUMER_EXPIRY_MS
    filter: str = ""

    @classmethod
    def of(cls, config: GroupConfig) -> "GroupSettings":
        """From the API's form; absent fields get their defaults."""
        policy = policy_of(config)
        if config.mode == GroupMode.GROUP_MODE_BROADCAST:
            policy = replace(policy, dead_letters=False)
        return cls(
            config.ack_deadline_ms if config.HasField("ack_deadline_ms") else ACK_DEADLINE_MS,
            config.max_in_flight if config.HasField("max_in_flight") else MAX_IN_FLIGHT,
            policy,
            config.dead_letter_age_ms if config.HasField("dead_letter_age_ms") else DEAD_LETTER_AGE_MS,
            config.dead_letter_bytes if config.HasField("dead_letter_bytes") else DEAD_LETTER_BYTES,
            config.mode or GroupMode.GROUP_MODE_SHARED,
            config.expired_to_dead_letters,
            config.max_consumers if config.HasField("max_consumers") else MAX_CONSUMERS,
            config.consumer_expiry_ms if config.HasField("consumer_expiry_ms") else CONSUMER_EXPIRY_MS,
            config.filter,
        )

    def message(self) -> GroupConfig:
        """As the API shows it, every field present; those about consumers only where there are some."""
        broadcast = self.mode == GroupMode.GROUP_MODE_BROADCAST
        return GroupConfig(
            mode=self.mode,
            ack_deadline_ms=self.ack_deadline_ms,
            max_in_flight=self.max_in_flight,
            retry=retry_message(self.policy),
            max_attempts=self.policy.max_attempts,
            dead_letters=self.policy.dead_letters,
            dead_letter_age_ms=self.dead_letter_age_ms,
            dead_letter_bytes=self.dead_letter_bytes,
            filter=self.filter,
            expired_to_dead_letters=self.expired_to_dead_letters,
            max_consumers=self.max_consumers if broadcast else None,
            consumer_expiry_ms=self.consumer_expiry_ms if broadcast else None,
        )
