"""What an operator can set, read once at start and never changed after.

Values come, strongest first, from arguments, ``ZIMAGE_*`` environment variables (``__`` between
group and name, ``ZIMAGE_KAFKA__BOOTSTRAP_SERVERS``), the TOML file named by ``--config`` or
``ZIMAGE_CONFIG``, and the defaults here. Nothing is read at import.
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
from zimage_stream.faults import Fault
from zimage_stream.masking import is_secret, masked, without_credentials

ENV_PREFIX = "ZIMAGE_"
CONFIG_VARIABLE = "ZIMAGE_CONFIG"

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Group(BaseModel):
    """Frozen, and an unknown name is an error: a misspelt setting must not be silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def text_is_trimmed(cls, value: Any, info: ValidationInfo) -> Any:
        """What a mounted secret or a file ends with is no part of it, and nothing else would say so."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind in (str, str | None, SecretStr, SecretStr | None):
            _check_trimmed(value.get_secret_value() if isinstance(value, SecretStr) else value)
        return value


def _check_trimmed(value: Any, name: str = "") -> None:
    if not isinstance(value, str):
        return
    if value != value.strip():
        problem = "it begins or ends with white space, such as the line break of a file; remove that"
    elif any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
        problem = "it has a line break or another control character in it; remove that"
    else:
        return
    raise PydanticCustomError("not_trimmed", "{problem}", {"problem": name + problem})


_OURS_ALONE = {
    **dict.fromkeys(("bootstrap.servers", "metadata.broker.list"), "use kafka.bootstrap_servers"),
    "security.protocol": "use kafka.security_protocol",
    "transactional.id": "each worker has one of its own; use kafka.transactional_id_prefix",
    "group.id": "use worker.group_id",
    "group.instance.id": "members are told apart by their slots; use worker.slot",
    "group.protocol": "workers join by the classic protocol; how they do by another one is not known yet",
    "group.remote.assignor": "workers join by the classic protocol",
    "partition.assignment.strategy": "partitions move one by one, as cooperative-sticky has it",
    "client.id": "workers are known to each other by it; use worker.slot",
    **dict.fromkeys(
        ("enable.auto.commit", "enable.auto.offset.store"), "what is done is committed with its results"
    ),
    "auto.offset.reset": "requests that the log has lost are for an operator to decide on",
    "isolation.level": "results of aborted transactions are none",
    "enable.partition.eof": "the end of a log says what lies before it",
    "enable.idempotence": "each record is to be there once",
    **dict.fromkeys(("acks", "request.required.acks"), "what is acknowledged must be on all replicas"),
}
"""Options of librdkafka on which the guarantees rest, and why they are not for ``kafka.extra``."""


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
    """Passed to librdkafka as it is, for what has no setting of its own; it wins over our values."""

    @field_validator("extra")
    @classmethod
    def secrets_are_trimmed(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            # A key or a certificate in PEM has lines.
            if is_secret(name) and not name.endswith("pem"):
                _check_trimmed(text, f"{name}: ")
        return value

    @field_validator("extra")
    @classmethod
    def guarantees_stay(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if (why := _OURS_ALONE.get(name)) is not None:
                problem = f"{name} cannot be set here: {why}"
                raise PydanticCustomError("ours_alone", "{problem}", {"problem": problem})
        return value

    @model_validator(mode="after")
    def sasl_is_whole(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL") and self.sasl_mechanism is None:
            raise ValueError("sasl_mechanism is needed with security_protocol " + self.security_protocol)
        return self


class TopicSettings(Group):
    requests: str = "zimage.requests"
    results: str = "zimage.results"
    dead_letters: str = "zimage.dead-letters"


class RegistrySettings(Group):
    url: str | None = None
    """No registry: events are written in Avro single-object framing."""
    username: str | None = None
    password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    auto_register: bool = False

    @model_validator(mode="before")
    @classmethod
    def credentials_leave_the_url(cls, data: Any) -> Any:
        """They become ``username`` and ``password``: a URL is shown, in errors and by ``/readyz``."""
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
                "a user and a password are in url, and in username and password too; give them once",
            )
        return {**data, "url": url, "username": username, "password": password}


class StoreSettings(Group):
    kind: Literal["minio", "directory"] = "minio"
    endpoint: str = "localhost:9000"
    bucket: str = "zimage"
    access_key: str | None = None
    """Absent: the usual ``AWS_*`` / ``MINIO_*`` variables, then the instance's role."""
    secret_key: SecretStr | None = None
    secure: bool = False
    region: str | None = None
    ssl_ca_location: Path | None = None
    prefix: str = ""
    path: Path = Path("zimage-images")
    public_base_url: str | None = None

    @field_validator("endpoint")
    @classmethod
    def endpoint_is_an_address(cls, value: str) -> str:
        scheme, separator, rest = value.rpartition("://")
        address = rest.rpartition("@")[2].rstrip("/")
        if not separator and "@" not in value:
            return value
        keys = "; keys go to store.access_key and store.secret_key" if "@" in value else ""
        raise PydanticCustomError(
            "endpoint",
            "{problem}",
            {
                "problem": f"takes HOST:PORT without a scheme: store.endpoint is {address!r} and "
                f"store.secure {str(scheme.lower() == 'https').lower()}{keys}"
            },
        )


class EngineSettings(Group):
    kind: Literal["zimage", "simulated"] = "zimage"
    model: str = "Tongyi-MAI/Z-Image-Turbo"
    """A folder, a hub id, or ``tiny``: the packaged checkpoint."""
    revision: str | None = None
    simulated_ms: Annotated[float, Field(ge=0)] = 320.0
    """Service time of the simulated engine for one 1024x1024 picture at 8 steps, in milliseconds."""
    simulated_faults: dict[str, str] = {}
    """What the simulated engine does to prompts with a piece of text in them: raise, kill, slow:3, …"""
    simulated_salt: str = ""
    """Gives a simulated engine pixels of its own, as another card or driver has."""
    simulated_scenery: bool = False
    """Its pictures are as hard to encode as photographs."""
    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    offload: Literal["none", "model", "sequential", "text_encoder"] = "none"
    attention: str | None = None
    compile: bool = False
    max_batch: Annotated[int, Field(ge=1, le=64)] = 8
    """What is started is marked in the checkpoint, which has room for 160 marks."""
    max_pixels: Annotated[int, Field(ge=64 * 64)] = 2048 * 2048
    allow_guidance: bool = False
    idle_release_s: Annotated[float, Field(ge=0)] = 0.0
    """0: the weights stay on the device."""
    hang_timeout_s: Seconds = 300.0
    """A batch that takes longer ends the process; more for more than a megapixel at 8 steps."""
    leak_limit_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """A worker whose device memory in use grows by more, batch after batch, is replaced by a new process."""

    @field_validator("simulated_faults")
    @classmethod
    def faults_are_known(cls, value: dict[str, str]) -> dict[str, str]:
        for directive in value.values():
            try:
                Fault.parse(directive)
            except ValueError as error:
                raise PydanticCustomError("fault", "{problem}", {"problem": str(error)}) from None
        return value


class SchedulerSettings(Group):
    tenant_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Share of a tenant against others; a tenant that is not named has 1."""


class WorkerSettings(Group):
    group_id: str = "zimage-workers"
    slot: str | None = None
    """A stable name for this worker among its group; absent: host name / device / index."""
    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    window: Positive = 16_384
    window_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    max_attempts: Annotated[int, Field(ge=1, le=14)] = 3
    """A mark counts to 15: one more is how a request is known that kills whoever reads it."""
    drain_timeout_s: Seconds = 30.0
    encode_threads: Positive = 2
    upload_threads: Positive = 4


class TelemetrySettings(Group):
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_prompts: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """Metrics and health; 0 takes any free port."""
    tenant_label: bool = False
    """Metrics name the tenants with the longest queues."""
    drain_target_s: Seconds = 60.0
    """In how long ``zimage_desired_workers`` would have the backlog served."""
    traces: bool = False
    """OpenTelemetry spans, sent where the ``OTEL_*`` variables say; needs the extra ``otel``."""


class Settings(BaseSettings):
    """Everything that can be set; see :func:`load_settings` for how it is read."""

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
        """This worker's stable name: the setting, else host name / device / index."""
        return self.worker.slot or f"{socket.gethostname()}/{device}/{index}"


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read and validate the settings.

    Args:
        config: a TOML file; absent: the one named by ``ZIMAGE_CONFIG``, if any.
        overrides: values that win over every other source, ``{"engine": {"kind": "simulated"}}``.

    Raises:
        SettingsError: a value is wrong, a name unknown, or the file unreadable.
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

    # The causes hold what was given, secrets too.
    try:
        return Sourced(**dict(overrides or {}))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from None
    except (SourceError, ValueError) as error:
        raise SettingsError(f"settings cannot be read: {masked(str(error))}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """What a settings file says. A byte order mark, as editors on Windows write it, is passed over.

    Raises:
        SettingsError: it cannot be read, or is no TOML in UTF-8.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"config file {path}: there is no such file") from None
    except OSError as error:
        raise SettingsError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"config file {path}: it is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"config file {path}: it is no TOML: {error}") from None


def environment_of(settings: Settings) -> dict[str, str]:
    """This process's environment with exactly these settings in it, for a child process.

    Secrets are among the values, in clear.
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
    """What was given, unless a secret may be in it: a whole group, all options of librdkafka, a list."""
    if len(place) < 2 or place[-1] == "extra" or any(map(is_secret, place)):
        return ""
    if not isinstance(value, str | int | float):
        return ""
    shown = masked(repr(value))
    # USER:PASSWORD@HOST without a scheme is no URL, and as secret.
    return "" if "@" in shown and shown == repr(value) else f" got {shown};"
