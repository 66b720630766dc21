from __future__ import annotations

import pytest

from guardwire.server_address import server_address


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:50051", ("localhost", 50051)),
        ("moderation.example", ("moderation.example", None)),
        ("10.0.0.7:443", ("10.0.0.7", 443)),
        ("[::1]:50051", ("::1", 50051)),
        ("dns:moderation:50051", ("moderation", 50051)),
        ("dns:///moderation:50051", ("moderation", 50051)),
        ("dns://8.8.8.8/moderation", ("moderation", None)),
        ("ipv4:10.0.0.7:50051", ("10.0.0.7", 50051)),
        ("ipv6:[2001:db8::7]:50051", ("2001:db8::7", 50051)),
        ("ipv4:10.0.0.7:50051,10.0.0.8:50051", ("ipv4:10.0.0.7:50051,10.0.0.8:50051", None)),
        ("unix:///run/guardwire.sock", ("/run/guardwire.sock", None)),
        ("unix:run/guardwire.sock", ("run/guardwire.sock", None)),
        ("unix-abstract:guardwire", ("guardwire", None)),
        ("xds:///moderation", ("xds:///moderation", None)),
        ("vsock:2:50051", ("vsock:2:50051", None)),
        ("::1", ("::1", None)),
    ],
)
def test_what_a_target_names(target: str, expected: tuple[str, int | None]) -> None:
    assert server_address(target) == expected
