"""Settings of a program: one TOML file, overridden by environment variables.

A program declares a `ProgramSettings` subclass built of `Section`s; every field carries a description with
its unit, which is also what the configuration reference is generated from. An override is named after its
path: `TIDEGATE_GATEWAY__GRPC__PORT=50051` sets `port` of section `grpc` of the program `gateway`.

The two sources are merged here rather than by pydantic-settings because unknown keys must be errors in both,
and every problem must be one line that names where the value came from.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_log = logging.getLogger(__name__)


class SettingsError(Exception):
    """The settings cannot be used. `problems` holds one line each, without any secret value."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    """A table of settings: immutable, unknown keys refused, every field described."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        for name, field in cls.model_fields.items():
            if not field.description:
                raise TypeError(f"{cls.__name__}.{name} needs a description")


class TlsSettings(Section):
    """A listener's certificate; PEM files."""

    cert_file: Path = Field(description="Certificate chain in PEM, the server's own first")
    key_file: Path = Field(description="Private key of the certificate in PEM")
    client_ca_file: Path | None = Field(
        default=None, description="CA in PEM; when set, clients must show a certificate signed by it"
    )


class ListenSettings(Section):
    """Where a program listens. Subclass it to give a listener its own default port."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; not loopback needs TLS and keys"
    )
    port: int = Field(default=0, ge=0, le=65535, description="TCP port; 0 takes a free one")
    tls: TlsSettings | None = Field(
        default=None, description="Certificate; without one the listener is plain"
    )


class ClientTlsSettings(Section):
    """How a program that dials out trusts the other side; PEM files."""

    ca_file: Path | None = Field(
        default=None, description="CA in PEM to trust; unset trusts the system's CAs"
    )
    cert_file: Path | None = Field(default=None, description="Own certificate chain in PEM, for mutual TLS")
    key_file: Path | None = Field(default=None, description="Private key of the own certificate in PEM")
    server_name: str | None = Field(
        default=None, description="Name to expect in the server's certificate instead of the address"
    )


class SecretSource(Section):
    """Where a secret comes from. The secret itself is never part of the settings."""

    file: Path | None = Field(default=None, description="File holding the secret on its first line")
    env: str | None = Field(default=None, description="Name of the environment variable holding the secret")

    @property
    def is_configured(self) -> bool:
        return self.file is not None or self.env is not None

    def read(self, environ: Mapping[str, str] = os.environ) -> str:
        """The secret. Raises SettingsError when neither source is named or the named one has nothing."""
        return read_secret(self.file, self.env, environ)


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level written; prompt text is never logged above debug"
    )
    json_lines: bool = Field(default=True, description="One JSON object a line; false writes plain text")


class ProgramSettings(Section):
    """Base of a program's settings. `program` names it in environment variables and messages."""

    program: ClassVar[str]

    log: LogSettings = Field(default=LogSettings(), description="What is logged to stderr")
    drain_grace_s: float = Field(
        default=3.0, ge=0, description="Seconds that running requests get to finish after SIGTERM or SIGINT"
    )


S = TypeVar("S", bound=ProgramSettings)


def env_prefix(cls: type[ProgramSettings]) -> str:
    return f"TIDEGATE_{cls.program.upper()}__"


def load_settings(
    cls: type[S], config: Path | str | None = None, environ: Mapping[str, str] = os.environ
) -> S:
    """The settings from `config` (a TOML file, or None) and the environment. Raises SettingsError."""
    values = _read_toml(Path(config)) if config is not None else {}
    sources: dict[tuple[str, ...], str] = {}
    for name in sorted(environ):
        path = _env_path(cls, name)
        if path is not None:
            _put(values, path, _env_value(cls, path, environ[name], name), name)
            sources[path] = name
    try:
        return cls.model_validate(_over_defaults(cls, values))
    except ValidationError as error:
        where = str(config) if config is not None else "settings"
        raise SettingsError(*_problems(cls, error, where, sources)) from None


def _over_defaults(cls: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Lays sections over their field's default, so that setting one key of a section keeps the others."""
    laid = dict(values)
    for name, field in cls.model_fields.items():
        section, given = section_of(field.annotation), values.get(name)
        if section is None or not isinstance(given, dict):
            continue
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        base = default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else {}
        laid[name] = base | _over_defaults(section, given)
    return laid


def read_secret(file: Path | str | None, env: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The secret in `file` (its first line) or else in the variable `env`. Raises SettingsError."""
    if file is not None:
        secret = _read_secret_file(Path(file))
        source = f"file {file}"
    elif env is not None:
        secret = environ.get(env, "").strip()
        source = f"environment variable {env}"
    else:
        raise SettingsError("a secret is needed: name its file or environment variable")
    if not secret:
        raise SettingsError(f"{source} holds no secret: it is unset or empty")
    return secret


def read_secrets(sources: Iterable[SecretSource]) -> list[str]:
    """All of them. Raises SettingsError with what is wrong with any of them."""
    secrets: list[str] = []
    problems: list[str] = []
    for source in sources:
        try:
            secrets.append(source.read())
        except SettingsError as error:
            problems.extend(error.problems)
    if problems:
        raise SettingsError(*problems)
    return secrets


def _read_secret_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as handle:
            mode = os.fstat(handle.fileno()).st_mode
            first = handle.readline(65536)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"cannot read the secret in {path}: {reason}") from None
    if mode & stat.S_IROTH:
        _log.warning("secret file %s is readable by everyone: chmod 600 it", path)
    return first.strip()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            return tomllib.load(handle)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _env_path(cls: type[ProgramSettings], name: str) -> tuple[str, ...] | None:
    prefix = env_prefix(cls)
    if not name.upper().startswith(prefix):
        return None
    return tuple(name[len(prefix) :].lower().split("__"))


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any, name: str) -> None:
    for depth, part in enumerate(path[:-1]):
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{name}: {'.'.join(path[: depth + 1])} is not a section")
    values[path[-1]] = value


def _env_value(cls: type[BaseModel], path: tuple[str, ...], text: str, name: str) -> Any:
    """Lists and tables may be written as JSON, lists also as words between commas."""
    wanted = _annotation_at(cls, path)
    containers = [kind for kind in flatten(wanted) if typing.get_origin(kind) in _CONTAINERS]
    if not containers:
        return text
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            # An IPv6 address also begins with a bracket, but has neither quotes nor braces.
            if any(mark in text for mark in '"{'):
                raise SettingsError(f"{name}: not valid JSON: {error.msg} at {error.pos}") from None
    if typing.get_origin(containers[0]) is dict:
        return text
    return [part.strip() for part in text.split(",") if part.strip()]


_CONTAINERS = (list, tuple, set, frozenset, dict)


def flatten(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone; None is left out."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(m for part in typing.get_args(annotation) for m in flatten(part))
    return () if annotation is type(None) else (annotation,)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    for member in flatten(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _annotation_at(cls: type[BaseModel], path: tuple[str, ...]) -> Any:
    field = cls.model_fields.get(path[0])
    if field is None:
        return None
    if len(path) == 1:
        return field.annotation
    section = section_of(field.annotation)
    return _annotation_at(section, path[1:]) if section is not None else None


def _problems(
    cls: type[ProgramSettings], error: ValidationError, where: str, sources: Mapping[tuple[str, ...], str]
) -> list[str]:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        loc = tuple(str(part) for part in item["loc"])
        origin = next((sources[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in sources), where)
        lines.append(f"{origin}: {'.'.join(loc) or cls.program}: {_explain(cls, loc, item)}")
    return lines


def _explain(cls: type[ProgramSettings], loc: tuple[str, ...], item: Mapping[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        section = cls if len(loc) == 1 else section_of(_annotation_at(cls, loc[:-1]))
        known = list(section.model_fields) if section is not None else []
        close = difflib.get_close_matches(loc[-1], known, n=1)
        return "unknown key" + (f', did you mean "{close[0]}"?' if close else "")
    if item["type"] == "missing":
        return "must be set"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
