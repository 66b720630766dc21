"""Whose call is being served."""

from contextvars import ContextVar

CURRENT_TENANT: ContextVar[str] = ContextVar("current_tenant", default="")
"""The name of the tenant whose call this is; empty where callers are not told apart."""


def tenant_name() -> str:
    """The name of the tenant whose call is being served, in the call's task or one that it has made."""
    return CURRENT_TENANT.get()
