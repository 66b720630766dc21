"""What goes on the wire when many streams share a call."""

from __future__ import annotations

import pytest

from guardwire import InvalidRequest, ModerateOptions
from guardwire.convert import requests
from guardwire.many_protocol import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, MAX_WAITING_REQUESTS, ManyProtocol
from guardwire.stream_protocol import Request

OPEN = requests.open_request("hello", ModerateOptions())
FINISH = requests.finish()


def push(token_id: int) -> Request:
    return requests.push_tokens([token_id], 0)


def text(num_bytes: int) -> Request:
    return requests.push_text("x" * num_bytes, flush=False)


def taken(protocol: ManyProtocol) -> list[tuple[int, Request]]:
    message = protocol.take_message()
    return [(item.stream_id, item.request) for item in message.requests] if message is not None else []


def begun(protocol: ManyProtocol) -> int:
    stream_id = protocol.new_stream()
    protocol.add(stream_id, [OPEN])
    assert taken(protocol) == [(stream_id, OPEN)]
    return stream_id


def test_what_gathers_goes_together_and_each_stream_keeps_its_order() -> None:
    protocol = ManyProtocol()
    first, second = protocol.new_stream(), protocol.new_stream()
    assert taken(protocol) == []
    protocol.add(first, [OPEN])
    protocol.add(second, [OPEN, push(1)])
    protocol.add(first, [push(2), FINISH])
    assert taken(protocol) == [(first, OPEN), (first, push(2)), (first, FINISH), (second, OPEN), (second, push(1))]
    assert taken(protocol) == []


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


def test_a_request_that_no_message_can_carry_is_refused() -> None:
    protocol = ManyProtocol()
    stream_id = begun(protocol)
    with pytest.raises(InvalidRequest, match="too many for one message") as caught:
        protocol.add(stream_id, [push(1), text(MAX_REQUEST_BYTES)])
    assert caught.value.field == "text"
    assert taken(protocol) == []
    protocol.add(stream_id, [text(MAX_REQUEST_BYTES - 16)])
    message = protocol.take_message()
    assert message is not None
    assert message.ByteSize() <= 4 * 1024 * 1024


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
