"""The worker shell: engine thread, router sessions, gRPC server and metrics around a role."""
