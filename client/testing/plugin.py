"""The pytest plugin: a running broker as a fixture. Importing it costs nothing; gRPC is imported by the first start."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ringpost.client.testing.broker import BrokerProcess


@pytest.fixture(scope="session")
def ringpost_broker_factory(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Callable[..., BrokerProcess]]":
    """Makes started brokers, each with its own data and ports: `ringpost_broker_factory(arguments=("--no-…",))`.

    Takes the parameters of `BrokerProcess`. All are killed at the end of the session.
    """
    from ringpost.client.testing.broker import BrokerProcess

    brokers: list[BrokerProcess] = []

    def make(**parameters: Any) -> BrokerProcess:
        parameters.setdefault("data_dir", tmp_path_factory.mktemp("ringpost") / "data")
        broker = BrokerProcess(**parameters)
        brokers.append(broker)
        return broker.start()

    yield make
    for broker in brokers:
        broker.kill()


@pytest.fixture
def ringpost_broker(ringpost_broker_factory: "Callable[..., BrokerProcess]") -> "Iterator[BrokerProcess]":
    """A broker of this test's own: `.address`, `.kill()`, `.restart()`, `.stop()`, `.data_dir`."""
    broker = ringpost_broker_factory()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def ringpost_session_broker(ringpost_broker_factory: "Callable[..., BrokerProcess]") -> "Iterator[BrokerProcess]":
    """One broker for the whole session: faster; tests keep apart by their channels' names and do not stop it."""
    broker = ringpost_broker_factory()
    yield broker
    broker.stop()
