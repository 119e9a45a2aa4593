"""What an operator can set, read once at start and never changed after.

Values come, strongest first, from arguments, ``ZIMAGE_*`` environment variables (``__`` between
group and name, ``ZIMAGE_KAFKA__BOOTSTRAP_SERVERS``), the TOML file named by ``--config`` or
``ZIMAGE_CONFIG``, and the defaults here. Nothing is read at import.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from zimage_stream.errors import SettingsError

ENV_PREFIX = "ZIMAGE_"
CONFIG_VARIABLE = "ZIMAGE_CONFIG"

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Group(BaseModel):
    """Frozen, and an unknown name is an error: a misspelt setting must not be silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    extra: dict[str, str] = {}
    """Passed to librdkafka as it is, for what has no setting of its own; it wins over our values."""

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
        from zimage_stream.engines.faults import Fault  # its package imports this module

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
    if path is not None and not path.is_file():
        raise SettingsError(f"config file {path}: there is no such file")

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
            sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
            return sources if path is None else (*sources, TomlConfigSettingsSource(settings_cls, path))

    try:
        return Sourced(**dict(overrides or {}))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from None
    except (SourceError, ValueError) as error:
        raise SettingsError(f"settings cannot be read: {error}") from error


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
    name = ENV_PREFIX + "__".join(str(step).upper() for step in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    got = "" if isinstance(problem["input"], dict) else f" got {problem['input']!r};"
    return f"{name}:{got} {problem['msg'][:1].lower()}{problem['msg'][1:]}"
