"""What is found to be wrong with a service before its first process starts: seconds, where the process would take long.

A file is read here only where it will be read: on this machine, with an embedded Ray.
"""

import os
import socket

from deploy.cluster import EMBEDDED
from deploy.config import ServiceConfig
from deploy.fleet.recipes import port_at
from engine.core.errors import BatonError, InvalidRequest
from engine.models.checkpoint import stored_tensors
from engine.models.hub import resolve_model
from engine.models.registry import load_config
from engine.models.weights import Rank, parameters
from engine.server.config import CLUSTER_KEY_VARIABLE
from engine.wire.tls import read
from kv_transfer.ticket import MIN_KEY_BYTES
from router.server_config import GatewayConfig
from router.tenants_file import read_tenants


def check_ports(config: ServiceConfig) -> None:
    """Raise InvalidRequest when a router cannot listen where it is to."""
    for index in range(config.routing.num_routers):
        _check_port(config.host, port_at(config.port, index), "port")
        _check_port(config.host, port_at(config.grpc_port, index), "grpc_port")


def check_secrets(gateway: GatewayConfig, *, ray_address: str) -> None:
    """Raise InvalidRequest for a cluster key that is too short, a tenants' file or certificates that will not do."""
    key = os.environ.get(CLUSTER_KEY_VARIABLE, "").encode()
    if 0 < len(key) < MIN_KEY_BYTES:
        raise InvalidRequest(f"{CLUSTER_KEY_VARIABLE} has {len(key)} bytes; at least {MIN_KEY_BYTES} are needed")
    if ray_address != EMBEDDED:
        return
    named = (("cluster_tls", gateway.tls.cluster), ("tls_cert", gateway.tls.clients))
    for flag, files in named:
        try:
            if files is not None:
                read(files)
        except BatonError as error:
            raise InvalidRequest(error.message, param=flag) from error
    try:
        if gateway.tenants is not None:
            read_tenants(gateway.tenants)
    except BatonError as error:
        raise InvalidRequest(error.message, param="tenants") from error


def check_model(config: ServiceConfig) -> None:
    """Fetch the model, read its config and tensor headers, divide it among ranks. Raises CheckpointError."""
    folder = resolve_model(config.engine.model)
    facts = load_config(folder, config.engine.max_model_len)
    stored_tensors(folder)
    for num_ranks in {config.prefill_ranks, config.decode_ranks}:
        parameters(facts, Rank(0, num_ranks))


def _check_port(host: str, port: int, flag: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}", param=flag) from error
