"""Filters: which messages a subscription or group wants, as expressions in a part of CEL. Pure."""
