from guardwire_server.engine.lag_samples import FollowedToken, LagSamples


def now_s() -> float:
    return 10.0


def test_a_followed_token_tells_its_lag_once() -> None:
    lags_s: list[float] = []
    token = FollowedToken(LagSamples(1), lags_s.append)
    token.follow(5, 7.0)
    token.answered(5, now_s)  # the tokens before it
    assert lags_s == []
    token.answered(6, now_s)
    token.answered(7, now_s)
    assert lags_s == [3.0]


def test_a_stream_follows_one_token_at_a_time() -> None:
    lags_s: list[float] = []
    token = FollowedToken(LagSamples(8), lags_s.append)
    token.follow(5, 7.0)
    token.follow(6, 8.0)
    token.answered(6, now_s)
    assert lags_s == [3.0]
    token.follow(6, 8.0)
    token.answered(7, now_s)
    assert lags_s == [3.0, 2.0]


def test_no_more_are_followed_than_there_is_room_for() -> None:
    lags_s: list[float] = []
    samples = LagSamples(2)
    tokens = [FollowedToken(samples, lags_s.append) for _ in range(3)]
    for token in tokens:
        token.follow(0, 7.0)
    assert not samples.has_room
    for token in tokens:
        token.answered(1, now_s)
    assert lags_s == [3.0, 3.0]
    assert samples.has_room


def test_a_token_that_is_lost_makes_room_and_tells_nothing() -> None:
    lags_s: list[float] = []
    samples = LagSamples(1)
    token = FollowedToken(samples, lags_s.append)
    token.follow(0, 7.0)
    token.lose()
    token.lose()
    token.answered(1, now_s)
    assert lags_s == []
    other = FollowedToken(samples, lags_s.append)
    other.follow(0, 9.0)
    other.answered(1, now_s)
    assert lags_s == [1.0]
    assert samples.has_room


def test_without_room_for_any_nothing_is_followed() -> None:
    assert not LagSamples(0).has_room
