from __future__ import annotations

import pytest

from guardwire import AsyncClient, Client, InvalidRequest
from guardwire.server_address import check_target, server_address


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


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "my_service.internal:1",
        "10.0.0.7:65535",
        "[::1]:50051",
        "dns:moderation:50051",
        "dns:///moderation",
        "dns://8.8.8.8/moderation:50051",
        "ipv4:10.0.0.7:50051,10.0.0.8:50051",
        "ipv6:[2001:db8::7]:50051",
        "unix:///run/guardwire.sock",
        "unix:run/guardwire.sock",
        "unix-abstract:guardwire",
        "vsock:2:50051",
        "xds:///moderation",
    ],
)
async def test_targets_that_grpc_knows(target: str) -> None:
    check_target(target)
    async with AsyncClient(target):
        pass
    with Client(target):
        pass


@pytest.mark.parametrize(
    "target",
    [
        "",
        "localhost",
        "50151",
        "localhost:",
        ":50051",
        "localhost:http",
        "localhost:0",
        "localhost:65536",
        "::1",
        "[::1]",
        "http://localhost:50051",
        "http://localhost",
        "localhost:50051/path",
        "localhost:50051\n",
        "local host:50051",
        "a:1,b:2",
        "dns:///",
        "unix:",
    ],
)
def test_targets_that_name_no_server(target: str) -> None:
    for make in (AsyncClient, Client):
        with pytest.raises(InvalidRequest, match="target: must be HOST:PORT, without http://, not ") as caught:
            make(target)
        assert caught.value.field == "target"
        assert repr(target) in caught.value.message


def test_the_scheme_that_is_too_much_is_named() -> None:
    with pytest.raises(InvalidRequest, match="without grpcs://, not 'grpcs://moderation:443'"):
        check_target("grpcs://moderation:443")
