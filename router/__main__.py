"""`python -m router`: one router process, until SIGTERM or Ctrl-C.

Scripts read one JSON line from its output when clients can connect; the log goes to stderr. Exit code 0 after a
signal, 1 when the router broke, 2 when it could not start.
"""

import argparse
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.core.errors import BatonError, InvalidRequest
from engine.models.hub import resolve_model
from engine.server.config import CLUSTER_KEY_VARIABLE
from router.config import AdmissionConfig, HedgeConfig, RouterConfig
from router.dialect.dialect import REASONING_PARSERS, TOOL_PARSERS
from router.doors.config import DoorConfig
from router.logs import LOG_FORMATS, set_up_logging
from router.policies.registry import POLICY_NAMES
from router.server import RunningRouter
from router.server_config import GatewayConfig, RouterServerConfig, tls_of

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
    flags.add_argument(
        "--workers-dns",
        action="append",
        default=[],
        metavar="NAME:PORT",
        help="a name whose addresses are workers, such as a headless service; asked for every few seconds; repeat",
    )
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on")
    flags.add_argument("--port", type=int, default=8000, help="of HTTP; 0 takes a free one")
    flags.add_argument("--grpc-port", type=int, default=8001, help="0 takes a free one")
    flags.add_argument("--admin-host", default="127.0.0.1", help="address to listen on for adding and removing workers")
    flags.add_argument("--admin-port", type=int, help="off when left out; 0 takes a free one")
    flags.add_argument("--policy", choices=POLICY_NAMES, default="cost", help="how workers are chosen")
    flags.add_argument(
        "--tenants", type=Path, help="TOML file of tenants and hashes of their keys; all may call if left out"
    )
    flags.add_argument(
        "--max-running", type=int, default=AdmissionConfig().max_running, help="requests on workers at once"
    )
    flags.add_argument("--max-queued", type=int, default=AdmissionConfig().max_queued, help="requests that may wait")
    flags.add_argument(
        "--hedge",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="send a request whose first token is late to a second pair, too; of all requests this share at most",
    )
    flags.add_argument("--otlp-endpoint", help="base URL of an OpenTelemetry collector that gets traces")
    flags.add_argument("--drain-s", type=float, default=30.0, help="after SIGTERM, seconds for answers under way")
    flags.add_argument("--drain-notice-s", type=float, default=0.0, help="of these, seconds before nobody can connect")
    flags.add_argument(
        "--kv-events",
        choices=("session", "public"),
        default="session",
        help="where workers' prefix events are read: in their sessions, or from their --kv-events feeds",
    )
    flags.add_argument("--tool-parser", choices=TOOL_PARSERS, default="auto", help="how the model writes tool calls")
    flags.add_argument("--reasoning-parser", choices=REASONING_PARSERS, default="auto", help="how it writes thoughts")
    flags.add_argument("--tls-cert", type=Path, help="PEM: TLS at the HTTP and gRPC doors; needs --tls-key")
    flags.add_argument("--tls-key", type=Path)
    flags.add_argument("--tls-client-ca", type=Path, help="PEM: clients must show a certificate of this authority")
    flags.add_argument(
        "--cluster-tls", type=Path, metavar="FOLDER", help="with tls.crt, tls.key, ca.crt: mutual TLS with workers"
    )
    flags.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    flags.add_argument("--log-format", default="text", choices=LOG_FORMATS)
    return flags


def config_of(arguments: argparse.Namespace, environment: Mapping[str, str]) -> RouterServerConfig:
    """Raises InvalidRequest, and CheckpointError for a model that is not there."""
    key = environment.get(CLUSTER_KEY_VARIABLE, "").encode()
    if not key:
        raise InvalidRequest(f"set {CLUSTER_KEY_VARIABLE} to a secret that all processes of the cluster share")
    tls = tls_of(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca, arguments.cluster_tls)
    folder = resolve_model(arguments.model)
    return RouterServerConfig(
        model=folder,
        model_name=arguments.model_name or Path(arguments.model).name or folder.resolve().name,
        cluster_key=key,
        max_model_len=arguments.max_model_len,
        host=arguments.host,
        port=arguments.port,
        grpc_port=arguments.grpc_port,
        admin_host=arguments.admin_host,
        admin_port=arguments.admin_port,
        worker_names=tuple(arguments.workers_dns),
        policy=arguments.policy,
        limits=RouterConfig(
            admission=AdmissionConfig(arguments.max_running, arguments.max_queued),
            hedge=HedgeConfig(arguments.hedge),
            public_feeds=arguments.kv_events == "public",
        ),
        gateway=GatewayConfig(arguments.tenants, arguments.otlp_endpoint, arguments.drain_notice_s, tls=tls),
        doors=DoorConfig(tool_parser=arguments.tool_parser, reasoning_parser=arguments.reasoning_parser),
    )


def ready_line(router: RunningRouter) -> str:
    """What scripts wait for."""
    ports = {"port": router.port, "grpc_port": router.grpc_port, "admin_port": router.admin_port}
    return json.dumps({"ready": True, **ports, "pid": os.getpid()})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one router. Returns the exit code."""
    arguments = parser().parse_args(argv)
    set_up_logging(arguments.log_level, arguments.log_format)
    _open_many_files()
    try:
        router = RunningRouter(config_of(arguments, os.environ))
    except BatonError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    for address in arguments.worker:
        router.add_worker(address)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: asked.append(number))
    sys.stdout.write(ready_line(router) + "\n")
    sys.stdout.flush()
    return _run_until_asked(router, asked, arguments.drain_s)


def _open_many_files() -> None:
    """Each client is an open file: as many as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run_until_asked(router: RunningRouter, asked: list[int], drain_s: float) -> int:
    """SIGHUP reads the tenants' file again; SIGTERM drains and ends; Ctrl-C, or a second SIGTERM, ends at once."""
    draining = False
    while not router.wait(SIGNAL_POLL_S):
        while asked:  # the kernel may give a signal to any thread; its handler runs when this one wakes up
            number = asked.pop(0)
            if number == signal.SIGHUP:
                _reload(router)
            elif number == signal.SIGTERM and not draining:
                draining = True
                router.ask_to_stop(drain_s)
            else:
                router.stop()
                return 0
    return 1 if router.died else 0


def _reload(router: RunningRouter) -> None:
    try:
        router.reload_tenants()
    except BatonError as error:
        logging.getLogger(__name__).error("the tenants stay as they were: %s", error.message)


if __name__ == "__main__":
    sys.exit(main())
