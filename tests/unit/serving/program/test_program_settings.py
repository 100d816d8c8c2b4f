"""One TOML file plus environment; every problem is one line that names its key and source."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from serving.settings import (
    ListenSettings,
    ProgramSettings,
    SecretSource,
    Section,
    SettingsError,
    load_settings,
    read_secret,
)
from serving.settings_docs import describe, example_toml


class Door(ListenSettings):
    port: int = Field(default=50051, ge=0, le=65535, description="TCP port")


class Client(Section):
    name: str = Field(description="Who this is")
    key: SecretSource = Field(default=SecretSource(), description="The client's key")


class Sample(ProgramSettings):
    program: ClassVar[str] = "sample"
    title: str = Field(default="a door", description="What it is called")
    door: Door = Field(default=Door(), description="Where it listens")
    other: Door = Field(default=Door(port=7), description="Where else it listens")
    names: list[str] = Field(default=[], description="Some names")
    costs: dict[str, float] = Field(default={}, description="Cost per name")
    clients: list[Client] = Field(default=[], description="Who may come in")
    pairs: tuple[tuple[int, float], ...] = Field(default=((1, 2.0),), description="Some pairs")
    tiers: tuple[Literal["edge", "cloud"], ...] = Field(default=("edge",), description="Where")
    groups: dict[str, Client] = Field(default={"a": Client(name="ann")}, description="Clients by group")
    mode: Literal["slow", "fast"] = Field(default="slow", description="How it works")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problems(config: Path | None, environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(Sample, config, environ)
    return caught.value.problems


def test_defaults_without_any_source() -> None:
    settings = load_settings(Sample, None, {})
    assert settings.door.port == 50051
    assert settings.other.port == 7


def test_one_key_of_a_section_keeps_the_sections_other_defaults() -> None:
    settings = load_settings(Sample, None, {"TIDEGATE_SAMPLE__OTHER__HOST": "::1"})
    assert (settings.other.host, settings.other.port) == ("::1", 7)


def test_environment_wins_over_file(tmp_path: Path) -> None:
    config = write(tmp_path / "s.toml", 'title = "file"\n[door]\nport = 1\nhost = "::1"\n')
    settings = load_settings(Sample, config, {"TIDEGATE_SAMPLE__DOOR__PORT": "2"})
    assert (settings.title, settings.door.host, settings.door.port) == ("file", "::1", 2)


@pytest.mark.parametrize(
    ("text", "names"),
    [("a, b", ["a", "b"]), ('["a", "b"]', ["a", "b"]), ("[::1]:5, x", ["[::1]:5", "x"]), ("", [])],
)
def test_lists_from_the_environment(text: str, names: list[str]) -> None:
    assert load_settings(Sample, None, {"TIDEGATE_SAMPLE__NAMES": text}).names == names


def test_broken_json_in_the_environment_is_not_taken_for_words() -> None:
    (line,) = problems(None, {"TIDEGATE_SAMPLE__NAMES": '["a", "b"'})
    assert line.startswith("TIDEGATE_SAMPLE__NAMES: not valid JSON: ")


def test_tables_and_lists_of_tables_from_the_environment_as_json() -> None:
    environ = {
        "TIDEGATE_SAMPLE__CLIENTS": '[{"name": "ann", "key": {"env": "ANN"}}]',
        "TIDEGATE_SAMPLE__COSTS__SMALL": "0.5",
    }
    settings = load_settings(Sample, None, environ)
    assert settings.clients[0].key.env == "ANN"
    assert settings.costs == {"small": 0.5}


def test_other_programs_variables_are_not_ours() -> None:
    assert (
        load_settings(Sample, None, {"TIDEGATE_GATEWAY__DOOR__PORT": "x", "PATH": "/bin"}).door.port == 50051
    )


def test_unknown_key_in_the_file_names_file_key_and_the_likely_one(tmp_path: Path) -> None:
    config = write(tmp_path / "s.toml", "[door]\nprot = 1\n")
    assert problems(config, {}) == (f'{config}: door.prot: unknown key, did you mean "port"?',)


def test_unknown_key_in_the_environment_names_the_variable() -> None:
    assert problems(None, {"TIDEGATE_SAMPLE__DOOR__PROT": "1"}) == (
        'TIDEGATE_SAMPLE__DOOR__PROT: door.prot: unknown key, did you mean "port"?',
    )


def test_each_problem_is_one_line(tmp_path: Path) -> None:
    config = write(tmp_path / "s.toml", 'mode = "medium"\nzzz = 1\n[door]\nport = 70000\n')
    lines = problems(config, {})
    assert len(lines) == 3
    assert all(line.startswith(f"{config}: ") and "\n" not in line for line in lines)
    assert {line.split(": ")[1] for line in lines} == {"mode", "zzz", "door.port"}


def test_a_variable_inside_something_that_is_no_section(tmp_path: Path) -> None:
    config = write(tmp_path / "s.toml", 'door = "x"\n')
    assert problems(config, {"TIDEGATE_SAMPLE__DOOR__PORT": "1"}) == (
        "TIDEGATE_SAMPLE__DOOR__PORT: door is not a section",
    )


def test_missing_file_and_broken_toml(tmp_path: Path) -> None:
    assert problems(tmp_path / "no.toml", {}) == (
        f"cannot read {tmp_path / 'no.toml'}: No such file or directory",
    )
    (line,) = problems(write(tmp_path / "bad.toml", "title = \n"), {})
    assert line.startswith(f"{tmp_path / 'bad.toml'} is not valid TOML: ")


def test_a_secret_put_where_its_source_belongs_is_not_shown() -> None:
    environ = {"TIDEGATE_SAMPLE__CLIENTS": '[{"name": "ann", "key": "hunter2"}]'}
    assert "hunter2" not in "\n".join(problems(None, environ))


def test_every_field_needs_a_description() -> None:
    with pytest.raises(TypeError, match=r"Bare\.depth needs a description"):
        type("Bare", (Section,), {"__annotations__": {"depth": int}, "depth": 3, "__module__": __name__})


def test_secret_from_file_is_its_first_line(tmp_path: Path) -> None:
    file = write(tmp_path / "token", "sesame\nsecond line\n")
    file.chmod(0o600)
    assert SecretSource(file=file).read({}) == "sesame"
    assert SecretSource(env="TOKEN").read({"TOKEN": "open\n"}) == "open"


def test_secret_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="NOPE holds no secret"):
        read_secret(None, "NOPE", {})
    with pytest.raises(SettingsError, match="cannot read the secret"):
        read_secret(tmp_path / "none", None, {})
    with pytest.raises(SettingsError, match="holds no secret"):
        read_secret(write(tmp_path / "empty", "\n"), None, {})
    with pytest.raises(SettingsError, match="a secret is needed"):
        SecretSource().read({})


def test_world_readable_secret_warns_and_private_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "token", "sesame\n")
    file.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        read_secret(file, None, {})
        assert not caplog.records
        file.chmod(0o644)
        read_secret(file, None, {})
    assert f"{file} is readable by everyone" in caplog.messages[0]
    assert "sesame" not in caplog.text


def test_rows_of_the_reference() -> None:
    rows = {row.key: row for row in describe(Sample)}
    assert rows["door.port"].env == "TIDEGATE_SAMPLE__DOOR__PORT"
    assert rows["other.port"].default == "7"
    assert rows["clients[].name"].is_required
    assert rows["clients[].key.file"].env == ""
    assert rows["mode"].type == "one of slow, fast"
    assert rows["names"].type == "list of strings"
    assert rows["costs"].type == "table of numbers"
    assert (rows["pairs"].type, rows["pairs"].default) == ("list of [integer, number]", "[[1, 2.0]]")
    assert rows["tiers"].type == "list of (one of edge, cloud)"
    assert rows["clients"].type == "list of tables"
    assert (rows["groups"].type, rows["groups"].default) == ("table of tables", '{ a = { name = "ann" } }')
    assert rows["groups.NAME.name"].is_required
    assert rows["door.tls.cert_file"].is_required
    assert not rows["door.tls.cert_file"].is_present


def test_example_loads_as_it_is_and_with_its_defaults_uncommented(tmp_path: Path) -> None:
    example = example_toml(Sample)
    assert (
        load_settings(Sample, write(tmp_path / "a.toml", example), {}).model_dump() == Sample().model_dump()
    )
    lines = [
        line[2:] if line in ("# port = 7", '# title = "a door"') else line for line in example.splitlines()
    ]
    changed = "\n".join(lines)
    assert tomllib.loads(changed)["other"] == {"port": 7}
    assert (
        load_settings(Sample, write(tmp_path / "b.toml", changed), {}).model_dump() == Sample().model_dump()
    )
