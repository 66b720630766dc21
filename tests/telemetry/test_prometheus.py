"""The page for Prometheus: names, what is on it and what is not, and scrapers of all manners."""

import asyncio
import re
import socket
import threading
import urllib.error
import urllib.request

import pytest
from opentelemetry.metrics import CallbackOptions, Observation

from guardwire_server.core.errors import StartupError
from guardwire_server.telemetry import prometheus
from guardwire_server.telemetry.providers import Telemetry, TelemetrySettings
from tests.telemetry.conftest import VERSION, StartTelemetry
from tests.telemetry.metrics_page import fetch, samples

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def test_names_are_those_of_the_documentation(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    meter = telemetry.meter_provider.get_meter("guardwire", VERSION)
    histogram = meter.create_histogram("guardwire.step.duration", "s", explicit_bucket_boundaries_advisory=[0.1, 1.0])
    histogram.record(0.5, {"guardwire.model.kind": "stream"})
    meter.create_counter("guardwire.token.judged", "{token}").add(3, {"guardwire.risk_level": "safe"})
    meter.create_gauge("guardwire.kv_arena.used", "1").set(0.25)
    meter.create_gauge("guardwire.tls.certificate_expiry", "s").set(1_800_000_000)
    found = samples(fetch(telemetry))
    assert found['guardwire_step_duration_seconds_bucket{guardwire_model_kind="stream",le="0.1"}'] == 0
    assert found['guardwire_step_duration_seconds_bucket{guardwire_model_kind="stream",le="1.0"}'] == 1
    assert found['guardwire_step_duration_seconds_count{guardwire_model_kind="stream"}'] == 1
    assert found['guardwire_step_duration_seconds_sum{guardwire_model_kind="stream"}'] == 0.5
    assert found['guardwire_token_judged_total{guardwire_risk_level="safe"}'] == 3
    assert found["guardwire_kv_arena_used"] == 0.25
    assert found["guardwire_tls_certificate_expiry_seconds"] == 1_800_000_000


def test_what_the_process_is_stands_in_one_line(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    telemetry.meter_provider.get_meter("guardwire").create_counter("a").add(1)
    page = fetch(telemetry)
    target = re.findall(r"^target_info\{.*", page, re.MULTILINE)
    assert len(target) == 1
    assert 'service_name="guardwire"' in target[0]
    assert f'service_version="{VERSION}"' in target[0]
    assert 'service_instance_id="' in target[0]
    assert "a_total 1.0" in page  # no labels of the scope


def test_openmetrics_is_spoken(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    telemetry.meter_provider.get_meter("guardwire").create_histogram("guardwire.step.duration", "s").record(1)
    page = fetch(telemetry, headers=OPENMETRICS)
    assert "# UNIT guardwire_step_duration_seconds seconds\n" in page
    assert page.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/debug/pprof"])
def test_there_is_nothing_else(path: str, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    with pytest.raises(urllib.error.HTTPError) as raised:
        fetch(telemetry, path)
    with raised.value as error:
        assert error.code == 404


def test_nothing_can_be_posted(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"http://{telemetry.metrics_address}/metrics", data=b"x", timeout=20)
    with raised.value as error:
        assert error.code == 405


async def test_scrapers_at_once_all_get_everything(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    meter = telemetry.meter_provider.get_meter("guardwire")
    for number in range(50):
        meter.create_counter(f"counter_{number}").add(1)
    pages = await asyncio.gather(*(asyncio.to_thread(fetch, telemetry) for _ in range(prometheus.MAX_CONNECTIONS)))
    assert all(page.count("\ncounter_") == 50 for page in pages)


def test_silent_scrapers_do_not_stand_in_the_way(
    start_telemetry: StartTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fill the places, are cut off in turn, and then a scrape is answered again."""
    monkeypatch.setattr(prometheus._Request, "timeout", 0.5)
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    telemetry.meter_provider.get_meter("guardwire").create_counter("a").add(1)
    host, _, port = (telemetry.metrics_address or "").rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(prometheus.MAX_CONNECTIONS + 2)]
    for connection in silent:
        assert connection.recv(1) == b""  # cut off
        connection.close()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join()  # its place is free
    assert "a_total 1.0" in fetch(telemetry)


def test_what_cannot_be_collected_is_told(start_telemetry: StartTelemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    assert telemetry._page
    monkeypatch.setattr(telemetry._page._registry, "collect", lambda: 1 / 0)
    with pytest.raises(urllib.error.HTTPError) as raised:
        fetch(telemetry)
    with raised.value as error:
        assert error.code == 500
        assert b"the log says why" in error.read()


def test_gauges_are_read_beside_the_event_loop(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    readers = []

    def read(_: CallbackOptions) -> list[Observation]:
        readers.append(threading.current_thread())
        return [Observation(7)]

    telemetry.meter_provider.get_meter("guardwire").create_observable_gauge("gauge", [read])
    assert "gauge 7.0" in fetch(telemetry)
    assert readers[0] is not threading.main_thread()


def test_a_taken_address_refuses_to_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        telemetry = Telemetry(TelemetrySettings(version=VERSION, metrics_listen=listen))
        with pytest.raises(StartupError, match=rf"metrics_listen: cannot bind {listen}: Address already in use"):
            telemetry.start()


def test_the_address_is_free_again_after_shutdown(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(metrics_listen="127.0.0.1:0")
    address = telemetry.metrics_address or ""
    telemetry.shutdown(20)
    assert start_telemetry(metrics_listen=address).metrics_address == address
