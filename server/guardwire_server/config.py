"""The configuration: one frozen tree, from a file, the environment and the command line, in rising precedence.

Every setting is a field of `ServerConfig`, and so a key of the YAML file, a variable `GUARDWIRE_<KEY>` and a flag
`--<key>` (underscores as hyphens). What is unknown or cannot be parsed refuses to start, and says where it came from.
This is the only place that reads the environment.
"""

import argparse
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from guardwire_server.config_mistakes import describe
from guardwire_server.core.errors import StartupError
from guardwire_server.settings_file import read_mapping

ENVIRONMENT_PREFIX = "GUARDWIRE_"

OTLP_ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""OpenTelemetry's own, which operators set for all their services; the other OTEL_ variables are read by its SDK."""

MAX_SECONDS, MAX_COUNT = 1e9, 2**31 - 1
"""More than anybody needs, and within what GetServerInfo can tell."""

Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")

_FOREIGN_VARIABLE = re.compile(r"config|target|api_key|(port|service)(_.*)?")
"""Variables with our prefix that are no settings: `--config`, the client's target and key, and what Kubernetes sets in
every container for a Service named `guardwire`."""


class ServerConfig(BaseModel):
    """All settings of `guardwire-server serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    stream_model: str = Field(
        default="demo", description="the Qwen3Guard-Stream checkpoint: a hub name, a directory, `demo`, or `none`"
    )
    gen_model: str = Field(
        default="demo", description="the Qwen3Guard-Gen checkpoint: a hub name, a directory, `demo`, or `none`"
    )
    listen: str = Field(default="127.0.0.1:50051", description="HOST:PORT to serve on; port 0 picks a free one")
    ready_file: Path | None = Field(
        default=None, description="file that receives the bound address once the server serves"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    dtype: Dtype = Field(default="auto", description="auto, float32, bfloat16 or float16")
    kv_dtype: Dtype = Field(
        default="auto", description="what keys and values are kept in: auto, float32, bfloat16 or float16"
    )
    num_threads: int = Field(default=0, ge=0, description="threads that torch computes with on a CPU; 0: one per core")
    native_kernels: bool = Field(
        default=True, description="compile kernels for this CPU at the first start, where there is a C++ compiler"
    )
    max_sessions: Count = Field(default=1024, description="streams open at once")
    max_classify_calls: Count = Field(default=256, description="Classify calls waiting or running at once")
    max_tokens_per_message: Count = Field(default=4096, le=1_000_000, description="token ids in one message")
    max_message_bytes: Count = Field(default=65536, le=3_000_000, description="bytes of UTF-8 in one message's content")
    max_messages: Count = Field(default=1024, description="messages in one conversation")
    max_pending_tokens: Count = Field(
        default=4096, description="tokens of one stream that wait to be judged before the server stops reading from it"
    )
    max_context_tokens: Count | None = Field(
        default=None, description="longest conversation in tokens; default: the model's"
    )
    kv_memory_gib: float | None = Field(
        default=None, gt=0, description="memory for cached keys and values, GiB per model; default: from what is free"
    )
    max_num_batched_tokens: Count | None = Field(
        default=None, description="tokens in one engine step; default: 256 on a CPU, 4096 on a GPU"
    )
    max_num_seqs: Count = Field(default=256, description="sequences in one engine step")
    idle_timeout_s: Seconds = Field(
        default=300.0, description="seconds after which a stream that pushes nothing is ended"
    )
    max_lifetime_s: Seconds = Field(
        default=3600.0, description="seconds after which a stream is ended whatever it does"
    )
    write_timeout_s: Seconds = Field(
        default=30.0, description="seconds after which a caller that reads nothing is cut off"
    )
    stall_timeout_s: Seconds | None = Field(
        default=None,
        description="seconds after which a step counts as stalled; default: from the steps measured at start",
    )
    drain_delay_s: float = Field(
        default=1.0,
        ge=0,
        le=MAX_SECONDS,
        description="seconds between NOT_SERVING and refusing new calls, for load balancers to notice",
    )
    grace_s: float = Field(
        default=30.0, ge=0, le=MAX_SECONDS, description="seconds that open calls have to end after SIGTERM"
    )
    reflection: bool | None = Field(
        default=None, description="serve gRPC reflection; default: only on a loopback address without access_file"
    )
    channelz: bool = Field(default=False, description="serve gRPC channelz, which shows the connections of all callers")
    tls_cert: Path | None = Field(default=None, description="PEM file with the server's certificate and its chain")
    tls_key: Path | None = Field(default=None, description="PEM file with the server's private key")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file with the authorities whose client certificates are let in; others are not"
    )
    allow_insecure: bool = Field(default=False, description="listen beyond loopback without TLS")
    access_file: Path | None = Field(
        default=None, description="YAML file with tenants, their credentials and limits; default: everybody is let in"
    )
    policies_file: Path | None = Field(
        default=None, description="YAML file with the policies; default: default, strict and observe"
    )
    reload_interval_s: Seconds = Field(
        default=1.0, description="seconds between looks at certificates, access_file and policies_file for changes"
    )
    health_listen: str | None = Field(
        default=None, description="HOST:PORT of a second port, without TLS, that serves grpc.health.v1 and nothing else"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="URL of an OpenTelemetry collector, gRPC; default: OTEL_EXPORTER_OTLP_ENDPOINT, or nothing is sent",
    )
    metrics_listen: str | None = Field(
        default=None, description="HOST:PORT that serves /metrics to Prometheus; default: none"
    )
    metrics_interval_s: Seconds = Field(default=10.0, description="seconds between exports of metrics by OTLP")
    trace_ratio: Share = Field(
        default=1.0, description="share of the calls without a caller's trace that are traced, 0 to 1"
    )
    step_trace_ratio: Share = Field(default=0.01, description="share of the engine steps that are traced, 0 to 1")
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto", description="text, json, or auto: text on a terminal and JSON elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level to log")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object, info: ValidationInfo) -> object:
        # An empty otlp_endpoint says that nothing is sent, whatever OTEL_EXPORTER_OTLP_ENDPOINT says.
        if value == "" and info.field_name != "otlp_endpoint":
            raise ValueError("is empty")
        return value

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError(f"must be auto, cpu, cuda or cuda:N, found {value!r}")
        return value

    @field_validator("listen", "health_listen", "metrics_listen")
    @classmethod
    def _check_listen(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, colon, port = value.rpartition(":")
        if not (host and colon and port.isdigit() and int(port) < 65536):
            raise ValueError("must be HOST:PORT with a port from 0 to 65535")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_otlp_endpoint(cls, value: str | None) -> str | None:
        url = urlsplit(value or "http://none")
        if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/"):
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, of a port that speaks gRPC")
        return value

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if self.stream_model == self.gen_model == "none":
            raise ValueError("stream_model, gen_model: both are none, so there is nothing to serve")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: both or neither must be set")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("tls_client_ca: needs tls_cert and tls_key")
        if not (self.tls_cert or self.allow_insecure or is_loopback(self.listen)):
            raise ValueError(
                f"listen: {self.listen} is not a loopback address, and there is no TLS; set tls_cert and tls_key, "
                "or allow_insecure if something in front encrypts"
            )
        return self

    @model_validator(mode="after")
    def _check_addresses(self) -> Self:
        taken: dict[tuple[str, int], str] = {}
        for key in ("listen", "health_listen", "metrics_listen"):
            host, _, port = (getattr(self, key) or ":0").rpartition(":")
            if int(port) == 0:
                continue
            first = taken.setdefault((host.lower().replace("localhost", "127.0.0.1"), int(port)), key)
            if first != key:
                raise ValueError(f"{first} and {key} are the same address, {getattr(self, key)}")
        return self

    @property
    def has_reflection(self) -> bool:
        """Whether reflection is served."""
        if self.reflection is not None:
            return self.reflection
        return is_loopback(self.listen) and self.access_file is None


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name: whatever it resolves to


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and a flag for every setting."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings, by the names below")
    for key, field in ServerConfig.model_fields.items():
        default = "" if field.default is None else f" (default: {field.default})"
        help_text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(f"--{key.replace('_', '-')}", dest=key, metavar="VALUE", help=help_text)


def load_config(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> ServerConfig:
    """Puts the configuration together.

    Args:
        flags: What `add_flags` made of the command line; None where a flag was not given.
        environment: The environment; default: the process's.

    Raises:
        StartupError: Naming every setting at fault and where it came from.
    """
    environment = os.environ if environment is None else environment
    config_file = flags.get("config") or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    variables = _environment_names(environment)
    written: dict[str, tuple[str, str]] = {}
    values: dict[str, Any] = {}
    for source, settings in (
        (str(config_file), _read_file(Path(config_file)) if config_file else {}),
        ("the environment", {key: environment[name] for key, name in variables.items()}),
        ("the command line", {key: flags[key] for key in ServerConfig.model_fields if flags.get(key) is not None}),
    ):
        values.update(settings)
        names = variables if source == "the environment" else {}
        written.update({key: (names.get(key, key), source) for key in settings})
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        raise StartupError(describe(error, written, list(ServerConfig.model_fields))) from None


def prepare_process() -> None:
    """Settings that libraries read when they are first imported; call it before torch is.

    OpenMP's threads otherwise spin between steps and starve the event loop.
    """
    # Weights and cache are read from end to end in every step: in pages of 4 KiB the processor spends a fifth of that
    # time on finding them. torch asks the system for large pages if this is set.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Below that gRPC writes a line of its own, in its own form, for every connection that somebody begins wrongly.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path)
    except StartupError as error:
        raise StartupError(f"config: {error.message}") from None


def _environment_names(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that hold settings, by the settings' keys."""
    keys = {name: name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in environment}
    names = {
        key: name
        for name, key in keys.items()
        if name.startswith(ENVIRONMENT_PREFIX) and not _FOREIGN_VARIABLE.fullmatch(key)
    }
    if environment.get(OTLP_ENDPOINT_VARIABLE):
        names.setdefault("otlp_endpoint", OTLP_ENDPOINT_VARIABLE)
    return names
