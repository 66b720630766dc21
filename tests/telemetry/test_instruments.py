"""Every instrument, as an OTLP collector is told of it by a server that has done a bit of everything."""

from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.observation import EngineLoad
from guardwire_server.telemetry import names
from guardwire_server.telemetry.instruments import COUNTERS, GAUGES, HISTOGRAMS, OBSERVED_COUNTERS, ServerState
from guardwire_server.telemetry.server import ServerTelemetry
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.running_server import RunningServer
from tests.telemetry.conftest import VERSION, StartTelemetry
from tests.telemetry.otlp_sink import OtlpSink, points

NAMES = {
    name: value
    for name, value in vars(names).items()
    if name.isupper() and not name.endswith(("SPAN", "EVENT")) and name != "SCOPE"
}
DECLARED = {declared.name: declared for declared in (*HISTOGRAMS, *COUNTERS, *OBSERVED_COUNTERS, *GAUGES)}
NEVER_HERE = {names.CERTIFICATE_EXPIRY, names.RELOADS}
"""What this server has no cause to tell: it has neither a certificate nor a file that changes."""


async def moderate(server: RunningServer, num_tokens: int) -> None:
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(num_tokens)), finish())
        while await call.read():
            pass


def test_names_are_declared_once_and_lie_below_our_own() -> None:
    assert len(DECLARED) == len(HISTOGRAMS) + len(COUNTERS) + len(OBSERVED_COUNTERS) + len(GAUGES)
    assert set(DECLARED) <= set(NAMES.values())
    assert all(name.startswith(("guardwire.", "rpc.server.")) for name in DECLARED)
    assert len(set(NAMES.values())) == len(NAMES)


async def test_every_instrument_arrives_with_its_unit_and_buckets(observed: RunningServer, sink: OtlpSink) -> None:
    await moderate(observed, 30)
    await observed.stub.Classify(pb.ClassifyRequest(messages=[user()]))
    failure = await observed.classify_failure(pb.ClassifyRequest())
    assert failure.reason
    arrived: dict[str, Metric] = {}
    for name in DECLARED.keys() - NEVER_HERE - {names.DECISIONS}:  # whether this model decides anything is its affair
        arrived[name] = (await sink.metric(name)).item
    for name, metric in arrived.items():
        assert metric.unit == DECLARED[name].unit
        assert metric.description == DECLARED[name].description
    for declared in HISTOGRAMS:
        assert arrived[declared.name].histogram.data_points[0].explicit_bounds == list(declared.buckets)
    for declared in (*COUNTERS, *OBSERVED_COUNTERS):
        if declared.name in arrived:
            assert arrived[declared.name].sum.is_monotonic
    assert all(arrived[declared.name].gauge.data_points for declared in GAUGES if declared.name in arrived)


async def test_counts_are_those_of_what_was_done(observed: RunningServer, sink: OtlpSink) -> None:
    for num_tokens in (3, 5):
        await moderate(observed, num_tokens)
    judged = 0.0
    for level in ("safe", "controversial", "unsafe"):
        judged += (await sink.point(names.TOKENS_JUDGED, guardwire__risk_level=level)).value
    while judged < 8:  # what arrived first may be older
        judged = 0.0
        for level in ("safe", "controversial", "unsafe"):
            judged += (await sink.point(names.TOKENS_JUDGED, guardwire__risk_level=level)).value
        await observed.info()
    assert judged == 8  # and not the token of its own that health has judged at start
    assert (await sink.point(names.SESSIONS_OPENED, at_least=2)).value == 2
    assert (await sink.point(names.SESSIONS_ENDED, at_least=2, guardwire__end_reason="finished")).value == 2
    assert (await sink.point(names.TIME_TO_PROMPT_VERDICT, at_least=2)).count == 2
    assert (await sink.point(names.VERDICT_LAG, at_least=2)).count == 2
    assert (await sink.point(names.SERVING, at_least=1)).value == 1


def state(**values: object) -> ServerState:
    known: dict[str, object] = {
        "num_sessions": 0,
        "max_sessions": 0,
        "num_calls": 0,
        "stream": None,
        "gen": None,
        "is_serving": False,
        "started_s": 1.7e9,
        "certificate_expiry_s": None,
        "is_refused": {},
    }
    return ServerState(**(known | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "name", "attributes", "value"),
    [
        (state(certificate_expiry_s=1.9e9), names.CERTIFICATE_EXPIRY, {}, 1.9e9),
        (state(num_sessions=7, stream=EngineLoad()), names.SESSIONS_ACTIVE, {}, 7),
        (state(num_calls=3, gen=EngineLoad()), names.CALLS_ACTIVE, {}, 3),
        (state(stream=EngineLoad(num_pending_tokens=9)), names.PENDING_TOKENS, {names.MODEL_KIND: "stream"}, 9),
        (state(gen=EngineLoad(arena_used=0.5)), names.KV_ARENA_USED, {names.MODEL_KIND: "gen"}, 0.5),
        (state(gen=EngineLoad(num_evictions=4)), names.KV_ARENA_EVICTIONS, {names.MODEL_KIND: "gen"}, 4),
        (
            state(stream=EngineLoad(num_reprefilled_tokens=64)),
            names.REPREFILLED_TOKENS,
            {names.MODEL_KIND: "stream"},
            64,
        ),
        (
            state(gen=EngineLoad(num_step_tokens=10, num_reused_tokens=20)),
            names.CLASSIFY_TOKENS,
            {names.PREFIX: "computed"},
            10,
        ),
        (
            state(gen=EngineLoad(num_step_tokens=10, num_reused_tokens=20)),
            names.CLASSIFY_TOKENS,
            {names.PREFIX: "reused"},
            20,
        ),
        (state(stream=EngineLoad(num_judged=(1, 2, 3))), names.TOKENS_JUDGED, {names.RISK_LEVEL: "controversial"}, 2),
        (state(is_serving=True), names.SERVING, {}, 1),
        (state(max_sessions=9, stream=EngineLoad()), names.SESSIONS_LIMIT, {}, 9),
        (state(), names.START_TIME, {}, 1.7e9),
        (state(is_refused={"tls_cert": True}), names.CONFIG_REFUSED, {names.SETTING: "tls_cert"}, 1),
        (
            state(is_refused={"tls_cert": True, "access_file": False}),
            names.CONFIG_REFUSED,
            {names.SETTING: "access_file"},
            0,
        ),
    ],
)
async def test_observed_instruments_tell_the_state(
    sink: OtlpSink,
    start_telemetry: StartTelemetry,
    told: ServerState,
    name: str,
    attributes: dict[str, str],
    value: float,
) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    ServerTelemetry(VERSION, meter_provider=telemetry.meter_provider).observe(lambda: told)
    wanted: dict[str, Any] = {key.replace(".", "__"): value for key, value in attributes.items()}
    point = await sink.point(name, **wanted)
    assert point.value == value


async def test_what_is_not_served_is_not_told(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    ServerTelemetry(VERSION, meter_provider=telemetry.meter_provider).observe(state)
    await sink.point(names.SERVING)
    assert set(sink.metrics) == {names.SERVING, names.START_TIME, names.SESSIONS_ENDED}
    # How streams end is counted from the start, before anybody knows whether there will be any.
    assert [point.value for point in points(sink.metrics[names.SESSIONS_ENDED].item) if point.value] == []


async def test_a_reload_is_counted(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    recorded = ServerTelemetry(VERSION, meter_provider=telemetry.meter_provider)
    for is_valid in (True, False, True):
        recorded.reloaded("policies_file", is_valid)
    for outcome, count in (("taken", 2), ("refused", 1)):
        point = await sink.point(
            names.RELOADS, at_least=count, guardwire__setting="policies_file", guardwire__outcome=outcome
        )
        assert point.value == count


async def test_how_streams_end_is_told_before_any_has(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    """What begins with a burst has risen by nothing for whoever sees it first."""
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    ServerTelemetry(VERSION, meter_provider=telemetry.meter_provider)
    for reason in ("device_lost", "step_failed", "internal", "finished", "blocked", "abandoned"):
        assert (await sink.point(names.SESSIONS_ENDED, guardwire__end_reason=reason)).value == 0
    assert len(points(sink.metrics[names.SESSIONS_ENDED].item)) == 6
