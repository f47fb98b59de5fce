"""The server's settings: environment (`BAPO_*`), then a YAML file, then flags.

The later the stronger. Owns names, defaults and what a value may be. Reads no model and opens
nothing; what a default resolves to on this machine is decided where it is used, once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from adapters.allowances import Allowance
from adapters.base import POCKET
from adapters.gate import Gate, gate_of
from adapters.limits import Limits

MEBIBYTE = 1024 * 1024

OURS = frozenset(
    {
        *("model", "served_model_name", "dtype", "max_model_len"),
        *("enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "worker_extension_cls"),
        *("lora_modules", "default_mm_loras"),
        "otlp_traces_endpoint",
    }
)
"""Options of vLLM's that the server sets by itself, or by a setting of the same name. Given behind
its back, it would admit more adapters than there are slots, forget what it has loaded, or answer
with an adapter that nobody may ask for."""

OF_ITS_SERVER = frozenset(
    {
        *("host", "port", "uds", "root_path", "middleware", "config", "headless", "grpc"),
        *("grpc_port", "api_key", "api_server_count", "allow_credentials", "allowed_origins"),
        *("allowed_methods", "allowed_headers", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs"),
        *("ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh", "uvicorn_log_level"),
    }
)
"""Options of vLLM's own web server, which does not run here: taking them would be a lie."""


class Settings(BaseSettings):
    """Every setting of `bapo serve`."""

    model_config = SettingsConfigDict(
        env_prefix="BAPO_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    model: str = Field(str(POCKET), description="base model: a folder or a Hub name")
    served_model_name: str | None = Field(
        None, description="the base's name to clients (default: the last part of `model`)"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    data_dir: Path = Field(
        Path(platformdirs.user_data_dir("bapo-server")),
        description="registry database, adapter store, upload scratch space",
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL of the registry (default: SQLite in the data folder)"
    )
    registry_poll_seconds: float = Field(
        0.25, gt=0, le=60, description="how often changes by other servers are looked for, seconds"
    )
    store_url: str | None = Field(
        None, description="object store of adapters, s3://bucket/prefix (default: the data folder)"
    )
    store_cache_mebibytes: int = Field(
        20 * 1024, ge=1, description="disk for adapters fetched from an object store, MiB"
    )
    admin_key: SecretStr | None = Field(
        None, description="admin key to accept; without it the first start makes one and prints it"
    )
    metrics_key: SecretStr | None = Field(
        None, description="a key that opens /metrics and nothing else (the admin keys open it too)"
    )
    metrics_adapters: int = Field(
        50, ge=0, description="adapters with metrics of their own; later ones count as `other`"
    )
    log_format: Literal["json", "console"] = Field(
        "json", description="lines of the log: json, or console for the eye"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="where traces go, http://host:4318/v1/traces (default: none are made)",
    )
    log_secret: SecretStr | None = Field(
        None, description="with what users are hashed in the log (default: anew at each start)"
    )
    user_requests_per_minute: int | None = Field(
        None, ge=0, description="requests of one user in a minute (default: any number)"
    )
    user_tokens_per_minute: int | None = Field(
        None, ge=0, description="tokens, prompts and answers, of one user in a minute"
    )
    user_streams: int | None = Field(
        None,
        ge=0,
        description="open requests of one user, running or waiting, on each server; more get 429",
    )
    user_tokens_per_month: int | None = Field(
        None, ge=0, description="tokens of one user in a calendar month (UTC)"
    )
    key_requests_per_minute: int | None = Field(
        None, ge=0, description="requests with one key in a minute, service keys too"
    )
    key_tokens_per_minute: int | None = Field(
        None, ge=0, description="tokens with one key in a minute, service keys too"
    )
    redis_url: str | None = Field(
        None,
        pattern=r"^rediss?://",
        description="where several servers count minutes together, redis://host:port/0",
    )
    feedback_days: float = Field(
        30.0,
        gt=0,
        le=36_500,
        description="how long an answer can be rated, and its texts are kept of users who agreed",
    )
    insecure_no_auth: bool = Field(
        False, description="take every request for an administrator's; on a loopback address only"
    )
    require_gate: bool = Field(
        False, description="activate only what a trusted verdict says passed `bapo eval --gate`"
    )
    gate_keys: str | None = Field(
        None,
        validate_default=True,
        description="public keys whose verdicts count, in hex, commas between",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="compute type; auto is the model's, or float32 on CPUs without bf16"
    )
    max_loras: int = Field(8, ge=1, description="adapters that can be in one batch")
    max_lora_rank: int = Field(
        16, description="largest adapter rank served; every slot reserves this much"
    )
    adapter_memory_mebibytes: int = Field(
        1024, ge=1, description="host memory for loaded adapters, MiB; the least used make room"
    )
    adapter_turn_seconds: float = Field(
        1.0, ge=0, description="how long an adapter in use may be joined while others wait for it"
    )
    adapter_wait_seconds: float = Field(
        30.0, gt=0, description="longest wait for a slot, when more adapters are wanted than fit"
    )
    canary_seconds: float = Field(
        30.0, gt=0, description="pause between two checks that the base still answers as at first"
    )
    max_model_len: int | None = Field(
        None, ge=1, description="longest prompt and answer together, tokens (default: the model's)"
    )
    kv_cache_mebibytes: int = Field(
        512, ge=16, description="memory for the key-value cache on a CPU, MiB"
    )
    max_upload_mebibytes: int = Field(512, ge=1, description="largest adapter upload, MiB")
    max_adapter_change: float = Field(
        10.0,
        gt=0,
        description="largest change of a layer that an upload may make, times the layer's weights",
    )
    max_body_mebibytes: int = Field(
        8, ge=1, description="largest request body besides uploads, MiB"
    )
    max_header_kibibytes: int = Field(
        32, ge=4, le=1024, description="longest request line and headers together, KiB"
    )
    max_sequences: int = Field(
        128, ge=1, description="answers that one request may ask for: its prompts times `n`"
    )
    max_answer_tokens: int | None = Field(
        None, ge=1, description="longest answer, tokens (default: what the context has room for)"
    )
    max_tools: int = Field(128, ge=0, description="tools in one request")
    max_logit_bias: int = Field(1024, ge=0, description="entries of `logit_bias` in one request")
    max_stops: int = Field(
        64, ge=0, description="stop sequences, stop token ids or bad words (vLLM: 4 sequences)"
    )
    client_seconds: float = Field(
        30.0,
        gt=0,
        description="how long a client may take to send a header, or a body and a second more for"
        " each 16 KiB of it, or to take off an answer",
    )
    user_concurrency: int = Field(
        64,
        ge=1,
        description="open requests of one user that run at once; as many again wait, in order",
    )
    drain_seconds: int = Field(20, ge=0, description="how long running answers may finish at stop")
    vllm: dict[str, Any] = Field(
        default_factory=dict, description="further vLLM engine arguments, by vLLM's own names"
    )

    @field_validator("max_lora_rank")
    @classmethod
    def _a_rank_that_vllm_has(cls, rank: int) -> int:
        allowed = (1, 8, 16, 32, 64, 128, 256, 320, 512)
        if rank not in allowed:
            raise ValueError(f"vLLM serves ranks up to one of {allowed}")
        return rank

    @field_validator("vllm")
    @classmethod
    def _leaves_ours_alone(cls, options: dict[str, Any]) -> dict[str, Any]:
        options = {name.replace("-", "_"): value for name, value in options.items()}
        if taken := sorted(options.keys() & OURS):
            raise ValueError(f"{', '.join(taken)} is the server's own setting, not one of vLLM's")
        if idle := sorted(options.keys() & OF_ITS_SERVER):
            raise ValueError(f"{', '.join(idle)} is for vLLM's own web server, which is not used")
        return options

    @field_validator("gate_keys")
    @classmethod
    def _a_gate_has_keys(cls, keys: str | None, info: ValidationInfo) -> str | None:
        gate_of(bool(info.data.get("require_gate")), keys)
        return keys

    @property
    def gate(self) -> Gate | None:
        """The rule for activation, if there is one."""
        return gate_of(self.require_gate, self.gate_keys)

    @property
    def base_name(self) -> str:
        """What clients call the base model."""
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def user_allowance(self) -> Allowance:
        """What a user may use for whom no exception was made."""
        return Allowance(
            self.user_requests_per_minute,
            self.user_tokens_per_minute,
            self.user_streams,
            self.user_tokens_per_month,
        )

    @property
    def key_allowance(self) -> Allowance:
        return Allowance(self.key_requests_per_minute, self.key_tokens_per_minute)

    @property
    def adapter_memory_bytes(self) -> int:
        return self.adapter_memory_mebibytes * MEBIBYTE

    @property
    def max_upload_bytes(self) -> int:
        return self.max_upload_mebibytes * MEBIBYTE

    @property
    def upload_limits(self) -> Limits:
        """What validation accepts of an adapter."""
        return Limits(
            max_rank=self.max_lora_rank,
            max_bytes=self.max_upload_bytes,
            max_delta_ratio=self.max_adapter_change,
        )

    @property
    def max_header_bytes(self) -> int:
        return self.max_header_kibibytes * 1024

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mebibytes * MEBIBYTE


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Settings from the environment, then `config` (YAML), then the flags that are not None.

    Raises pydantic's ValidationError for a value that does not fit, FileNotFoundError for a
    missing file.
    """
    if config is not None and not config.is_file():
        raise FileNotFoundError(f"{config} is not a file: name an existing YAML file")

    class WithFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = YamlConfigSettingsSource(settings_cls, yaml_file=config)
            return init_settings, file, env_settings

    return WithFile(**{name: value for name, value in flags.items() if value is not None})
