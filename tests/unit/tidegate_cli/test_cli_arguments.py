"""The command line itself."""

from __future__ import annotations

import pytest

from tidegate_cli.main import COMMANDS, build_parser, main


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("up", "--engine", "steam"), "invalid choice: 'steam'"),
        (("demo", "--acts", "xyz"), "must be letters of abcde"),
        (("demo", "--acts", ""), "must be letters of abcde"),
        (("nodes", "--gateway", "foo"), "'foo' is not host:port"),
        (("nodes", "--gateway", "foo:0"), "'foo:0' is not host:port"),
        (("nodes", "--gateway", "foo:http"), "'foo:http' is not host:port"),
        (("nodes", "--gateway", "a:1,foo"), "'foo' is not host:port"),
        (("nodes", "--gateway", ""), "an address like localhost:50051 is needed"),
        (("explain",), "prompt"),
        (("explain", "x", "--ttft-ms", "soon"), "invalid float value: 'soon'"),
        (("explain", "x", "--placement", "moon"), "invalid choice: 'moon'"),
        (("chat", "--max-tokens", "many"), "invalid int value: 'many'"),
    ],
)
def test_wrong_arguments_exit_2_and_are_named(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_help_names_every_command_and_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert any(f"\n    {command.name}{end}" in text for end in " \n")
    assert "`tidegate up` starts everything" in text


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_option_is_explained(name: str) -> None:
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    assert [action.dest for action in commands.choices[name]._actions if not action.help] == []


def test_gateway_addresses() -> None:
    args = build_parser().parse_args(["nodes", "--gateway", "a:1, [::1]:2,unix:/run/x,dns:///b"])
    assert args.gateway == ["a:1", "[::1]:2", "unix:/run/x", "dns:///b"]
