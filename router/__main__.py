"""`python -m router`: one router process, until SIGTERM or Ctrl-C.

Scripts read one JSON line from its output when clients can connect; the log goes to stderr. Exit code 0 after a
signal, 1 when the router broke, 2 when it could not start.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from engine.core.errors import BatonError, InvalidRequest
from engine.models.hub import resolve_model
from engine.server.config import CLUSTER_KEY_VARIABLE
from router.dialect.dialect import REASONING_PARSERS, TOOL_PARSERS
from router.doors.config import DoorConfig
from router.policies.registry import POLICY_NAMES
from router.server import RunningRouter
from router.server_config import RouterServerConfig

SIGNAL_POLL_S = 0.25


def parser() -> argparse.ArgumentParser:
    """Every flag of a router."""
    flags = argparse.ArgumentParser(
        prog="python -m router",
        epilog=f"The cluster key, shared with all workers, comes from the environment variable {CLUSTER_KEY_VARIABLE}.",
    )
    flags.add_argument("--model", required=True, help="checkpoint folder or hub id; weights are not read")
    flags.add_argument("--model-name", default="", help="what clients call the model")
    flags.add_argument("--max-model-len", type=int, help="tokens of prompt and answer together")
    flags.add_argument("--worker", action="append", default=[], metavar="HOST:PORT", help="one of the workers; repeat")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on")
    flags.add_argument("--port", type=int, default=8000, help="of HTTP; 0 takes a free one")
    flags.add_argument("--grpc-port", type=int, default=8001, help="0 takes a free one")
    flags.add_argument("--admin-host", default="127.0.0.1", help="address to listen on for adding and removing workers")
    flags.add_argument("--admin-port", type=int, help="off when left out; 0 takes a free one")
    flags.add_argument("--policy", choices=POLICY_NAMES, default="cost", help="how workers are chosen")
    flags.add_argument("--tool-parser", choices=TOOL_PARSERS, default="auto", help="how the model writes tool calls")
    flags.add_argument("--reasoning-parser", choices=REASONING_PARSERS, default="auto", help="how it writes thoughts")
    flags.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return flags


def config_of(arguments: argparse.Namespace, environment: Mapping[str, str]) -> RouterServerConfig:
    """Raises InvalidRequest, and CheckpointError for a model that is not there."""
    key = environment.get(CLUSTER_KEY_VARIABLE, "").encode()
    if not key:
        raise InvalidRequest(f"set {CLUSTER_KEY_VARIABLE} to a secret that all processes of the cluster share")
    folder = resolve_model(arguments.model)
    return RouterServerConfig(
        model=folder,
        model_name=arguments.model_name or folder.name,
        cluster_key=key,
        max_model_len=arguments.max_model_len,
        host=arguments.host,
        port=arguments.port,
        grpc_port=arguments.grpc_port,
        admin_host=arguments.admin_host,
        admin_port=arguments.admin_port,
        policy=arguments.policy,
        doors=DoorConfig(tool_parser=arguments.tool_parser, reasoning_parser=arguments.reasoning_parser),
    )


def ready_line(router: RunningRouter) -> str:
    """What scripts wait for."""
    ports = {"port": router.port, "grpc_port": router.grpc_port, "admin_port": router.admin_port}
    return json.dumps({"ready": True, **ports, "pid": os.getpid()})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one router. Returns the exit code."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(
        level=arguments.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        router = RunningRouter(config_of(arguments, os.environ))
    except BatonError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    for address in arguments.worker:
        router.add_worker(address)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: asked.append(number))
    sys.stdout.write(ready_line(router) + "\n")
    sys.stdout.flush()
    while not asked and not router.wait(SIGNAL_POLL_S):
        pass  # the kernel may give a signal to any thread; its handler runs when this one wakes up
    router.stop()
    return 0 if asked else 1


if __name__ == "__main__":
    sys.exit(main())
