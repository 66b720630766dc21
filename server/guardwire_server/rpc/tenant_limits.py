"""The limits that hold for a tenant: the server's, and its own where they are narrower."""

from dataclasses import replace

from guardwire_server.access.rules import TenantLimits
from guardwire_server.rpc.catalogue import RequestLimits


def limits_for(tenant: TenantLimits, server: RequestLimits) -> RequestLimits:
    """What a tenant's requests are held to, and what it is told."""
    return replace(
        server,
        max_sessions=_narrower(server.max_sessions, tenant.max_streams),
        max_classify_calls=_narrower(server.max_classify_calls, tenant.max_classify_calls),
        max_tokens_per_message=_narrower(server.max_tokens_per_message, tenant.max_tokens_per_message),
        max_message_bytes=_narrower(server.max_message_bytes, tenant.max_message_bytes),
    )


def _narrower(server: int, tenant: int | None) -> int:
    return server if tenant is None else min(server, tenant)
