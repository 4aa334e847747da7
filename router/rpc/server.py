"""The gRPC door: baton.v1.Inference with health and reflection on a grpc.aio server."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.wire import inference_pb2
from engine.wire.inference_pb2_grpc import add_InferenceServicer_to_server
from router.api import Generator
from router.doors.config import DoorConfig
from router.doors.gateway import Gateway
from router.rpc.malformed import RefuseMalformed
from router.rpc.service import InferenceService
from router.text.model import ServedModel

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name


class RpcDoor:
    """Handle on the registered services. `set_serving` is what health checks and Watch streams are told."""

    def __init__(self, health_servicer: health.aio.HealthServicer) -> None:
        self._health = health_servicer

    async def set_serving(self, serving: bool) -> None:
        """Tell health clients, of the server ("") and of the service, whether requests can be served."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def drain(self) -> None:
        """Report NOT_SERVING from now on, whatever `set_serving` says."""
        await self._health.enter_graceful_shutdown()


def make_server(config: DoorConfig) -> grpc.aio.Server:
    """A server for add_inference: takes prompts over 4 MB, limits keepalive pings, refuses what is no message."""
    options = [
        ("grpc.max_receive_message_length", config.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]
    return grpc.aio.server(options=options, interceptors=[RefuseMalformed()])


def add_inference(
    server: grpc.aio.Server,
    generator: Generator,
    model: ServedModel,
    config: DoorConfig,
    gateway: Gateway | None = None,
) -> RpcDoor:
    """Register Inference, grpc.health.v1 and reflection on a server that has not started.

    `gateway`: who may call, and how much; left out, everybody. Health and reflection are open to all either way.
    Call `set_serving` before it starts: until then health clients are told nothing about the service.
    """
    health_servicer = health.aio.HealthServicer()
    add_InferenceServicer_to_server(InferenceService(generator, model, config, gateway or Gateway()), server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return RpcDoor(health_servicer)
