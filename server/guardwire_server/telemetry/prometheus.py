"""The page that Prometheus scrapes.

It is served by threads of its own, a few at a time, since collecting takes milliseconds and a scraper may be slow; the
event loop never waits for either. Metric names are those that OpenTelemetry's exporter makes of the instruments':
underscores for dots, the unit behind (`s` as `seconds`), `_total` behind counters. What the process is stands in
`target_info` alone, not on every line.
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, make_wsgi_app

from guardwire_server.core.errors import StartupError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

PATH = "/metrics"
MAX_CONNECTIONS = 8
"""Scrapers that are answered at once; more are cut off."""

SOCKET_TIMEOUT_S = 5.0
"""A scraper that sends or reads nothing for so long is cut off."""

SHUTDOWN_POLL_S = 0.1
"""How often the server looks whether it should end."""


class MetricsPage:
    """Owner of a metric reader and of the HTTP server that shows what it reads. `start` is called once."""

    def __init__(self, listen: str) -> None:
        self._listen = listen
        self._registry = CollectorRegistry()
        self.reader = PrometheusMetricReader(registry=self._registry, scope_info_enabled=False)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Binds and serves; returns the bound address, with the port that was picked if 0 was asked for.

        Raises:
            StartupError: If the address cannot be bound.
        """
        host, _, port = self._listen.rpartition(":")
        try:
            family, _, _, _, where = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            server = _Server(family, where)
        except OSError as error:
            raise StartupError(f"metrics_listen: cannot bind {self._listen}: {error.strerror}") from None
        server.set_app(_one_page(make_wsgi_app(self._registry)))
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(SHUTDOWN_POLL_S,), name="metrics-page", daemon=True
        )
        self._thread.start()
        return f"{host}:{server.server_port}"

    def close(self) -> None:
        """Stops serving; quick. If it does not serve, it does nothing."""
        server, self._server = self._server, None
        if server and self._thread:
            server.shutdown()
            self._thread.join()
            server.server_close()


def _one_page(
    show_metrics: "Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]",
) -> "Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]":
    """Serves the metrics under their path and nothing anywhere else."""
    # The reader hands what it has collected to whoever comes first: of two scrapers at once, one would get nothing.
    lock = threading.Lock()

    def serve(request: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if request["PATH_INFO"] != PATH:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"there is {PATH} alone\n".encode()]
        try:
            with lock:
                return show_metrics(request, start_response)
        except Exception:
            logger.exception("metrics could not be collected")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"metrics could not be collected, the log says why\n"]

    return serve


class _Request(WSGIRequestHandler):
    timeout = SOCKET_TIMEOUT_S

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002, ANN401 the library's signature
        """Scrapes are not logged."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, up to a number."""

    daemon_threads = True

    def __init__(self, family: int, where: Any) -> None:  # noqa: ANN401 what getaddrinfo gives, by family
        self.address_family = family
        self._free_places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(where, _Request)

    def server_bind(self) -> None:
        """Binds without asking the name service what this host is called, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 the library's signature
        """Answers on a thread, if there is a place."""
        if not self._free_places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free_places.release()  # no thread was started
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answers, on that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free_places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002
        """Takes note of a scraper that was cut off, or went away."""
        logger.debug("a scrape was not finished", exc_info=True)
