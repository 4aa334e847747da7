"""The wire between routers and workers: generated stubs, dataclass <-> message, the router's client of a worker."""
