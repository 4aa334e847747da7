"""`python -m router --model FOLDER --worker HOST:PORT ...`: one router process, for when nothing else starts it."""

import argparse
import logging
import os
import secrets
import signal
import sys
from pathlib import Path

from engine.core.errors import BatonError, InvalidRequest
from router.policies.registry import POLICY_NAMES
from router.server import RouterServerConfig, RunningRouter

KEY_VARIABLE = "BATON_CLUSTER_KEY"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m router", description="Route requests to prefill and decode workers."
    )
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint's folder; weights are not read")
    parser.add_argument("--name", default="", help="what clients call the model; the folder's name when left out")
    parser.add_argument("--max-model-len", type=int, help="tokens of prompt and answer together")
    parser.add_argument(
        "--worker", action="append", default=[], metavar="HOST:PORT", help="may be given again and again"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces")
    parser.add_argument("--port", type=int, default=8000, help="HTTP port; 0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, help="gRPC port; 0 takes a free one")
    parser.add_argument("--admin-host", default="127.0.0.1", help="where workers are added and removed")
    parser.add_argument("--admin-port", type=int, help="off when left out; 0 takes a free one")
    parser.add_argument("--policy", choices=POLICY_NAMES, default="cost", help="how workers are chosen")
    parser.add_argument(
        "--cluster-key-file", type=Path, help=f"hexadecimal, shared by all processes; {KEY_VARIABLE} when left out"
    )
    return parser.parse_args(arguments)


def cluster_key(path: Path | None) -> bytes:
    """The key of the cluster; a new one when none is given and nobody could use it. Raises InvalidRequest."""
    source = str(path) if path else KEY_VARIABLE
    try:
        text = path.read_text() if path else os.environ.get(KEY_VARIABLE, "")
        key = bytes.fromhex(text.strip())
    except OSError as error:
        raise InvalidRequest(f"cannot read {source}: {error.strerror}") from error
    except ValueError:
        raise InvalidRequest(f"{source} is not hexadecimal") from None
    if key and len(key) < 16:
        raise InvalidRequest(f"{source} must hold at least 16 bytes")
    return key


def config_of(options: argparse.Namespace) -> RouterServerConfig:
    """Raises InvalidRequest."""
    key = cluster_key(options.cluster_key_file)
    if not key and options.admin_port is not None:
        raise InvalidRequest(f"--admin-port needs a cluster key: --cluster-key-file or {KEY_VARIABLE}")
    # Salts need only differ from what others can guess; routers that share workers must share the key, too.
    key = key or secrets.token_bytes(32)
    return RouterServerConfig(
        model=options.model,
        model_name=options.name or options.model.resolve().name,
        cluster_key=key,
        max_model_len=options.max_model_len,
        host=options.host,
        port=options.port,
        grpc_port=options.grpc_port,
        admin_host=options.admin_host,
        admin_port=options.admin_port,
        policy=options.policy,
    )


def main(arguments: list[str]) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status: 0 stopped, 1 ended by a fault, 2 could not start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = parse(arguments)
    try:
        router = RunningRouter(config_of(options))
    except BatonError as error:
        sys.stderr.write(f"baton router: {error.message}\n")
        return 2
    for address in options.worker:
        router.add_worker(address)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: _interrupt())
    admin = "" if router.admin_port is None else f", admin on {options.admin_host}:{router.admin_port}"
    sys.stdout.write(f"ready: HTTP on {options.host}:{router.port}, gRPC on {options.host}:{router.grpc_port}{admin}\n")
    sys.stdout.flush()
    try:
        router.wait()
    except KeyboardInterrupt:
        router.stop()
    return 1 if router.died else 0


def _interrupt() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
