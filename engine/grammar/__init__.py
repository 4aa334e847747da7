"""Which tokens may come next, so that an answer is one that a grammar allows. Used by routers and workers; no torch."""
