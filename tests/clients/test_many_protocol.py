"""What goes on the wire when many streams share a call."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardwire import ModerateOptions, many_protocol
from guardwire.convert import requests
from guardwire.convert.requests import Request, SingleToken
from guardwire.many_protocol import MAX_MESSAGE_BYTES, MAX_WAITING_REQUESTS, ManyProtocol
from guardwire.request_size import MAX_REQUEST_BYTES
from guardwire.v1 import moderation_pb2 as pb

OPEN = requests.open_request("hello", ModerateOptions())
FINISH = requests.finish()


def push(token_id: int) -> Request:
    return SingleToken(token_id, 0)


def text(num_bytes: int) -> Request:
    return requests.push_text("x" * num_bytes, flush=False)


def contents(message: pb.ModerateStreamsRequest | None) -> list[tuple[int, Request | int]]:
    """What a server takes from a message, in its order: requests, then the token ids of the step."""
    if message is None:
        return []
    requests_ = [(item.stream_id, item.request) for item in message.requests]
    return [*requests_, *zip(message.step.stream_ids, message.step.token_ids, strict=True)]


def taken(protocol: ManyProtocol) -> list[tuple[int, Request | int]]:
    return contents(protocol.take_message())


def begun(protocol: ManyProtocol) -> int:
    stream_id = protocol.new_stream()
    protocol.add(stream_id, [OPEN])
    assert taken(protocol) == [(stream_id, OPEN)]
    return stream_id


def test_no_message_has_more_requests_than_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_protocol, "MAX_REQUESTS", 3)
    protocol = ManyProtocol()
    streams = [protocol.new_stream() for _ in range(4)]
    for stream_id in streams:
        protocol.add(stream_id, [OPEN])
    assert taken(protocol) == [(stream_id, OPEN) for stream_id in streams[:3]]
    assert taken(protocol) == [(streams[3], OPEN)]
    assert taken(protocol) == []


def test_what_gathers_goes_together_and_each_stream_keeps_its_order() -> None:
    protocol = ManyProtocol()
    first, second = protocol.new_stream(), protocol.new_stream()
    assert taken(protocol) == []
    protocol.add(first, [OPEN])
    protocol.add(second, [OPEN, push(1)])
    protocol.add(first, [push(2), FINISH])
    assert taken(protocol) == [
        (first, OPEN),
        (first, requests.message(push(2))),
        (first, FINISH),
        (second, OPEN),
        (second, 1),
    ]
    assert taken(protocol) == []


def test_only_the_single_tokens_that_a_stream_ends_with_are_packed() -> None:
    protocol = ManyProtocol()
    stream_id = begun(protocol)
    several = requests.push_tokens([2, 3], 1)
    empty = requests.push_tokens([], 3)
    protocol.add(stream_id, [push(1), several, push(4), empty, push(5), push(0)])
    alone = [requests.message(request) for request in (push(1), several, push(4), empty)]
    assert taken(protocol) == [(stream_id, request) for request in (*alone, 5, 0)]
    assert taken(protocol) == []


def test_what_is_packed_into_a_full_message_waits_for_the_next() -> None:
    protocol = ManyProtocol()
    first, second = begun(protocol), begun(protocol)
    protocol.add(first, [push(1)])
    protocol.add(second, [text(MAX_MESSAGE_BYTES), push(2)])
    assert taken(protocol) == [(first, 1)]
    assert taken(protocol) == [(second, text(MAX_MESSAGE_BYTES))]
    assert taken(protocol) == [(second, 2)]
    assert taken(protocol) == []


def test_a_step_holds_no_more_tokens_than_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_protocol, "MAX_STEP_TOKENS", 3)
    protocol = ManyProtocol()
    streams = [begun(protocol) for _ in range(5)]
    for stream_id in streams:
        protocol.add(stream_id, [push(stream_id)])
    sizes = []
    while (message := protocol.take_message()) is not None:
        sizes.append(len(message.step.token_ids))
    assert sizes == [3, 2]


LARGE = [text(MAX_MESSAGE_BYTES // 3), text(MAX_MESSAGE_BYTES // 2), text(MAX_MESSAGE_BYTES)]
REQUESTS = [push(1), push(2), push(3), requests.push_tokens([4, 5], 0), requests.rollback(0), *LARGE]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.none() | st.tuples(st.integers(1, 3), st.lists(st.integers(0, len(REQUESTS) - 1), max_size=4)), max_size=20
    )
)
def test_however_it_is_packed_each_stream_is_taken_in_its_order(steps: list[tuple[int, list[int]] | None]) -> None:
    protocol = ManyProtocol()
    told = defaultdict(list)
    heard = defaultdict(list)
    for _ in range(3):
        stream_id = protocol.new_stream()
        protocol.add(stream_id, [OPEN])
        told[stream_id].append(OPEN)
    for step in [*steps, *[None] * 100]:  # None: a message is taken
        if step is not None:
            stream_id, numbers = step  # of requests, which are too large to be shown
            requests_ = [REQUESTS[number] for number in numbers]
            protocol.add(stream_id, requests_)
            told[stream_id] += map(requests.message, requests_)
        elif (message := protocol.take_message()) is not None:
            assert message.ByteSize() <= MAX_MESSAGE_BYTES or len(contents(message)) == 1
            for stream_id, request in contents(message):
                heard[stream_id].append(requests.message(push(request)) if isinstance(request, int) else request)
    assert heard == told


def test_the_bound_on_what_waits_is_each_streams_own() -> None:
    protocol = ManyProtocol()
    first, second = protocol.new_stream(), protocol.new_stream()
    for number in range(MAX_WAITING_REQUESTS):
        assert protocol.has_room(first)
        protocol.add(first, [push(number)])
    assert not protocol.has_room(first)
    assert protocol.has_room(second)
    protocol.take_message()
    assert protocol.has_room(first)


def test_a_full_message_leaves_the_rest_to_the_next() -> None:
    protocol = ManyProtocol()
    stream_id = protocol.new_stream()
    pushes = [text(MAX_MESSAGE_BYTES // 3), text(MAX_MESSAGE_BYTES // 3), text(MAX_MESSAGE_BYTES // 2)]
    protocol.add(stream_id, [*pushes, text(2 * MAX_MESSAGE_BYTES), FINISH])
    sizes = []
    while requests_ := taken(protocol):
        sizes.append(len(requests_))
    assert sizes == [2, 1, 1, 1]


def test_the_largest_request_fits_into_a_message() -> None:
    protocol = ManyProtocol()
    stream_id = begun(protocol)
    largest = text(MAX_REQUEST_BYTES - 10)
    assert isinstance(largest, pb.ModerateStreamRequest)
    assert largest.ByteSize() == MAX_REQUEST_BYTES
    protocol.add(stream_id, [largest])
    message = protocol.take_message()
    assert message is not None
    assert MAX_REQUEST_BYTES < message.ByteSize() <= 4 * 1024 * 1024


def test_leaving_drops_what_waits_and_asks_for_the_end() -> None:
    protocol = ManyProtocol()
    stream_id = begun(protocol)
    protocol.add(stream_id, [push(1), FINISH])
    protocol.leave(stream_id)
    protocol.leave(stream_id)
    protocol.add(stream_id, [push(2)])
    assert taken(protocol) == [(stream_id, FINISH)]
    assert not protocol.is_empty
    protocol.end(stream_id)
    assert protocol.is_empty


def test_leaving_before_the_server_knows_the_stream_says_nothing() -> None:
    protocol = ManyProtocol()
    stream_id = protocol.new_stream()
    protocol.add(stream_id, [OPEN, push(1)])
    protocol.leave(stream_id)
    assert taken(protocol) == []
    assert protocol.is_empty


def test_leaving_after_finish_says_nothing_more() -> None:
    protocol = ManyProtocol()
    stream_id = begun(protocol)
    protocol.add(stream_id, [FINISH])
    protocol.take_message()
    protocol.leave(stream_id)
    assert taken(protocol) == []
    assert not protocol.is_empty


def test_what_waits_for_a_stream_that_has_ended_is_dropped() -> None:
    protocol = ManyProtocol()
    stream_id = begun(protocol)
    for _ in range(MAX_WAITING_REQUESTS):
        protocol.add(stream_id, [push(1)])
    protocol.end(stream_id)
    assert protocol.has_room(stream_id)
    protocol.add(stream_id, [push(2)])
    assert taken(protocol) == []
    protocol.leave(stream_id)
    protocol.end(stream_id)
    assert protocol.is_empty


def test_ids_are_never_used_twice() -> None:
    protocol = ManyProtocol()
    ids = []
    for _ in range(5):
        ids.append(begun(protocol))
        protocol.end(ids[-1])
    assert len(set(ids)) == 5


def test_a_call_that_is_over_has_nothing_to_write() -> None:
    protocol = ManyProtocol()
    protocol.add(protocol.new_stream(), [OPEN])
    protocol.clear()
    assert protocol.is_empty
    assert taken(protocol) == []
