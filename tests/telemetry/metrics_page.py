"""The page for Prometheus, as a scraper gets it."""

import urllib.request

from guardwire_server.telemetry.providers import Telemetry


def fetch(telemetry: Telemetry, path: str = "/metrics", headers: dict[str, str] | None = None) -> str:
    request = urllib.request.Request(f"http://{telemetry.metrics_address}{path}", headers=headers or {})
    with urllib.request.urlopen(request, timeout=20) as response:
        content: bytes = response.read()
    return content.decode()


def samples(page: str) -> dict[str, float]:
    """Lines of a page by name and labels."""
    lines = [line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
