"""Ringpost's own thin client of etcd: a `Kv` (`client.EtcdKv`) over several endpoints."""
