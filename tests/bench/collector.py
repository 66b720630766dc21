"""`python -m tests.bench.collector`: an OpenTelemetry collector that takes everything and keeps nothing."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from guardwire_server.ready_file import claim_ready_file

Context = grpc.aio.ServicerContext[Any, Any]


class Traces(trace_grpc.TraceServiceServicer):
    """Takes spans."""

    async def Export(  # noqa: N802 gRPC's name
        self, request: trace_pb.ExportTraceServiceRequest, context: Context
    ) -> trace_pb.ExportTraceServiceResponse:
        """Takes a batch."""
        return trace_pb.ExportTraceServiceResponse()


class Metrics(metrics_grpc.MetricsServiceServicer):
    """Takes metrics."""

    async def Export(  # noqa: N802
        self, request: metrics_pb.ExportMetricsServiceRequest, context: Context
    ) -> metrics_pb.ExportMetricsServiceResponse:
        """Takes a batch."""
        return metrics_pb.ExportMetricsServiceResponse()


class Logs(logs_grpc.LogsServiceServicer):
    """Takes log records."""

    async def Export(  # noqa: N802
        self, request: logs_pb.ExportLogsServiceRequest, context: Context
    ) -> logs_pb.ExportLogsServiceResponse:
        """Takes a batch."""
        return logs_pb.ExportLogsServiceResponse()


async def collect(listen: str, ready_file: Path) -> None:
    """Collects until SIGTERM."""
    server = grpc.aio.server()
    trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
    metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
    logs_grpc.add_LogsServiceServicer_to_server(Logs(), server)  # type: ignore[no-untyped-call]
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    with claim_ready_file(ready_file) as write_ready_file:
        port = server.add_insecure_port(listen)
        await server.start()
        write_ready_file(f"{listen.rpartition(':')[0]}:{port}")
        await stopped.wait()
    await server.stop(None)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.collector", description=__doc__)
    parser.add_argument("--listen", required=True, help="HOST:PORT; port 0 picks a free one")
    parser.add_argument("--ready-file", type=Path, required=True, help="receives the bound address")
    options = parser.parse_args()
    asyncio.run(collect(options.listen, options.ready_file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
