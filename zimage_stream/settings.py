"""The settings, read once at startup and immutable afterwards.

Values come from the following sources, the first of which wins: arguments, ``ZIMAGE_*`` environment variables
(with ``__`` between group and name, as in ``ZIMAGE_KAFKA__BOOTSTRAP_SERVERS``), the TOML file named by
``--config`` or ``ZIMAGE_CONFIG``, and the defaults below. Nothing is read at import.
"""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from zimage_stream.errors import SettingsError
from zimage_stream.masking import is_secret, masked, without_credentials
from zimage_stream.simulated_faults import Fault

ENV_PREFIX = "ZIMAGE_"
CONFIG_VARIABLE = "ZIMAGE_CONFIG"

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Group(BaseModel):
    """Base of the groups of settings: frozen, and strict, so that a misspelt setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def check_text_trimmed(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject surrounding white space, such as the final line break of a mounted secret: the error that it
        causes later would not reveal it."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind in (str, str | None, SecretStr, SecretStr | None):
            _check_trimmed(value.get_secret_value() if isinstance(value, SecretStr) else value)
        return value


def _check_trimmed(value: Any, name: str = "") -> None:
    if not isinstance(value, str):
        return
    if value != value.strip():
        problem = "it begins or ends with white space, such as the line break of a file; remove it"
    elif any(ord(character) < 32 or ord(character) == 127 for character in value):
        problem = "it contains a line break or another control character; remove it"
    else:
        return
    raise PydanticCustomError("not_trimmed", "{problem}", {"problem": name + problem})


_OURS_ALONE = {
    **dict.fromkeys(("bootstrap.servers", "metadata.broker.list"), "use kafka.bootstrap_servers"),
    "security.protocol": "use kafka.security_protocol",
    "transactional.id": "each worker has its own; use kafka.transactional_id_prefix",
    "group.id": "use worker.group_id",
    "group.instance.id": "members are identified by their slots; use worker.slot",
    "group.protocol": "workers use the classic protocol; other protocols are not supported yet",
    "group.remote.assignor": "workers use the classic protocol",
    "partition.assignment.strategy": "workers rely on the incremental rebalances of cooperative-sticky",
    "client.id": "workers identify each other by it; use worker.slot",
    **dict.fromkeys(
        ("enable.auto.commit", "enable.auto.offset.store"), "offsets are committed together with the results"
    ),
    "auto.offset.reset": "if the log has lost requests, an operator must decide",
    "isolation.level": "records of aborted transactions must not be read as results",
    "enable.partition.eof": "readers need it to know when they have reached the end of a partition",
    "enable.idempotence": "without it a record could be written twice",
    **dict.fromkeys(("acks", "request.required.acks"), "an acknowledged record must be on all replicas"),
}
"""Options of librdkafka that the guarantees depend on, with the reason why ``kafka.extra`` rejects each."""


class KafkaSettings(Group):
    bootstrap_servers: str = "localhost:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    ssl_certificate_location: Path | None = None
    ssl_key_location: Path | None = None
    ssl_key_password: SecretStr | None = None
    transactional_id_prefix: str = "zimage"
    extra: Annotated[dict[str, str], Field(repr=False)] = {}
    """Further librdkafka options, for those without a setting of their own; they override our values."""

    @field_validator("extra")
    @classmethod
    def check_secrets_trimmed(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            # A PEM key or certificate has several lines.
            if is_secret(name) and not name.endswith("pem"):
                _check_trimmed(text, f"{name}: ")
        return value

    @field_validator("extra")
    @classmethod
    def check_extra(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if (why := _OURS_ALONE.get(name)) is not None:
                problem = f"{name} cannot be set here: {why}"
                raise PydanticCustomError("ours_alone", "{problem}", {"problem": problem})
        return value

    @model_validator(mode="after")
    def check_sasl(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL") and self.sasl_mechanism is None:
            raise ValueError("sasl_mechanism is required with security_protocol " + self.security_protocol)
        return self


class TopicSettings(Group):
    requests: str = "zimage.requests"
    results: str = "zimage.results"
    dead_letters: str = "zimage.dead-letters"
    cancellations: str = "zimage.cancellations"
    progress: str = "zimage.progress"


class RegistrySettings(Group):
    url: str | None = None
    """URL of the schema registry; without one, events are written in Avro single-object framing."""
    username: str | None = None
    password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    auto_register: bool = False

    @model_validator(mode="before")
    @classmethod
    def move_credentials_out_of_url(cls, data: Any) -> Any:
        """Move credentials from the URL to ``username`` and ``password``, because errors and ``/readyz`` show
        the URL."""
        if not isinstance(data, dict) or not isinstance(data.get("url"), str):
            return data
        try:
            url, username, password = without_credentials(data["url"])
        except ValueError as error:
            raise PydanticCustomError("url", "{problem}", {"problem": f"url: {error}"}) from None
        if username is None:
            return data
        if data.get("username") is not None or data.get("password") is not None:
            raise PydanticCustomError(
                "url",
                "a user and password are given in url and also in username and password; give them once",
            )
        return {**data, "url": url, "username": username, "password": password}


class StoreSettings(Group):
    kind: Literal["minio", "directory"] = "minio"
    endpoint: str = "localhost:9000"
    bucket: str = "zimage"
    access_key: str | None = None
    """Access key; by default the usual ``AWS_*`` or ``MINIO_*`` variables, then the instance's role."""
    secret_key: SecretStr | None = None
    secure: bool = False
    region: str | None = None
    ssl_ca_location: Path | None = None
    prefix: str = ""
    path: Path = Path("zimage-images")
    public_base_url: str | None = None

    @field_validator("endpoint")
    @classmethod
    def check_endpoint(cls, value: str) -> str:
        scheme, separator, rest = value.rpartition("://")
        address = rest.rpartition("@")[2].rstrip("/")
        if not separator and "@" not in value:
            return value
        keys = "; set the keys as store.access_key and store.secret_key" if "@" in value else ""
        raise PydanticCustomError(
            "endpoint",
            "{problem}",
            {
                "problem": f"takes HOST:PORT without a scheme: set store.endpoint to {address!r} and "
                f"store.secure to {str(scheme.lower() == 'https').lower()}{keys}"
            },
        )


class EngineSettings(Group):
    kind: Literal["zimage", "simulated"] = "zimage"
    model: str = "Tongyi-MAI/Z-Image-Turbo"
    """A folder, a hub id, or ``tiny`` for the packaged checkpoint."""
    revision: str | None = None
    simulated_ms: Annotated[float, Field(ge=0)] = 320.0
    """Service time of the simulated engine for one 1024x1024 image at 8 steps, in milliseconds."""
    simulated_faults: dict[str, str] = {}
    """Faults of the simulated engine, by a substring of the prompt: raise, kill, slow:3, …"""
    simulated_salt: str = ""
    """Changes the pixels of the simulated engine, as a different card or driver would."""
    simulated_scenery: bool = False
    """Makes the simulated images as hard to encode as photographs."""
    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    offload: Literal["none", "model", "sequential", "text_encoder"] = "none"
    attention: str | None = None
    compile: bool = False
    max_batch: Annotated[int, Field(ge=1, le=64)] = 8
    """Maximum batch size. Each started request needs a mark in the checkpoint, which has room for 160."""
    max_pixels: Annotated[int, Field(ge=64 * 64)] = 2048 * 2048
    allow_guidance: bool = False
    idle_release_s: Annotated[float, Field(ge=0)] = 0.0
    """Idle time after which the weights leave the device, in seconds; 0 means that they stay."""
    hang_timeout_s: Seconds = 300.0
    """Time after which an unfinished batch ends the process, in seconds for 1 megapixel at 8 steps; larger
    images and more steps get more."""
    leak_limit_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Growth of the device memory in use, batch after batch, after which the worker process is replaced."""

    @field_validator("simulated_faults")
    @classmethod
    def check_faults(cls, value: dict[str, str]) -> dict[str, str]:
        for directive in value.values():
            try:
                Fault.parse(directive)
            except ValueError as error:
                raise PydanticCustomError("fault", "{problem}", {"problem": str(error)}) from None
        return value


class SchedulerSettings(Group):
    tenant_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Relative share of each tenant; unlisted tenants have 1."""


class WorkerSettings(Group):
    group_id: str = "zimage-workers"
    slot: str | None = None
    """A stable name for this worker within its group; by default host name / device / index."""
    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    window: Positive = 16_384
    window_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    max_attempts: Annotated[int, Field(ge=1, le=14)] = 3
    """Maximum number of attempts. A mark can count to 15; the extra one identifies a request that kills every
    worker that reads it."""
    drain_timeout_s: Seconds = 30.0
    progress: Literal["off", "stages", "steps"] = "stages"
    """What is published of requests before their results: nothing, their stages, or each denoising step as
    well. Stages include the previews that a request asks for."""
    encode_threads: Positive = 2
    upload_threads: Positive = 4


class TelemetrySettings(Group):
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_prompts: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """Port for metrics and health; 0 means any free port."""
    tenant_label: bool = False
    """Whether metrics name the tenants with the longest queues."""
    drain_target_s: Seconds = 60.0
    """Time within which ``zimage_desired_workers`` workers would serve the backlog, in seconds."""
    traces: bool = False
    """Whether to export OpenTelemetry spans, as the ``OTEL_*`` variables say; needs the extra ``otel``."""


class Settings(BaseSettings):
    """All settings; see :func:`load_settings` for how they are read."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    registry: RegistrySettings = RegistrySettings()
    store: StoreSettings = StoreSettings()
    engine: EngineSettings = EngineSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    worker: WorkerSettings = WorkerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    def slot(self, device: str = "cpu", index: int = 0) -> str:
        """Return this worker's stable name: the setting, or host name / device / index."""
        return self.worker.slot or f"{socket.gethostname()}/{device}/{index}"


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read and validate the settings.

    Args:
        config: a TOML file; by default the one named by ``ZIMAGE_CONFIG``, if any.
        overrides: values that override every other source, such as ``{"engine": {"kind": "simulated"}}``.

    Raises:
        SettingsError: a value is invalid, a name is unknown, or the file cannot be read.
    """
    path = config or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    in_file = {} if path is None else read_toml(path)

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, in_file)

    # "from None" because the causes contain the values, including secrets.
    try:
        return Sourced(**dict(overrides or {}))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from None
    except (SourceError, ValueError) as error:
        raise SettingsError(f"settings cannot be read: {masked(str(error))}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a settings file. A byte order mark, as Windows editors write it, is ignored.

    Raises:
        SettingsError: the file cannot be read, or is not TOML in UTF-8.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"config file {path}: the file does not exist") from None
    except OSError as error:
        raise SettingsError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"config file {path}: it is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"config file {path}: it is not valid TOML: {error}") from None


def environment_of(settings: Settings) -> dict[str, str]:
    """Build the environment of a child process: that of this process, with exactly these settings.

    The values include secrets in plain text.
    """
    out = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
    for group, values in settings.model_dump(exclude_none=True).items():
        for name, value in values.items():
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            out[f"{ENV_PREFIX}{group}__{name}".upper()] = text
    return out


def _explain(problem: Any) -> str:
    place = [str(step) for step in problem["loc"]]
    name = ENV_PREFIX + "__".join(place).upper()
    if problem["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{name}:{_got(place, problem['input'])} {message}"


def _got(place: Sequence[str], value: Any) -> str:
    """Quote the given value, unless it may contain a secret: a whole group, librdkafka options or a list."""
    if len(place) < 2 or place[-1] == "extra" or any(map(is_secret, place)):
        return ""
    if not isinstance(value, str | int | float):
        return ""
    shown = masked(repr(value))
    # USER:PASSWORD@HOST without a scheme is not a URL, but just as secret.
    return "" if "@" in shown and shown == repr(value) else f" got {shown};"
