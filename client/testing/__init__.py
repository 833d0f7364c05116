"""A running broker for tests: the pytest fixtures `ringpost_broker`, `ringpost_session_broker`,
`ringpost_broker_factory`, and `BrokerProcess` in `ringpost.client.testing.broker` for everything else."""
