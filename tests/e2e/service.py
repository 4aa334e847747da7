"""A real `baton serve` for tests."""

from deploy.spawned import BATON, READY, STOP_S, Service, environment, serve, stop

__all__ = ["BATON", "READY", "STOP_S", "Service", "environment", "serve", "stop"]
