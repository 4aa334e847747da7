"""The public feed of the prefix cache over ZMQ. Off unless asked for."""
