"""The command line of ``loopwatch run``: ours ends where the program begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loopwatch.commands import main
from loopwatch.commands.options import parse_run_options


@pytest.mark.parametrize(
    ("line", "program", "is_module", "arguments"),
    [
        ("app.py", "app.py", False, ()),
        ("app.py --threshold 3 -m x", "app.py", False, ("--threshold", "3", "-m", "x")),
        ("--threshold 1 app.py --json x", "app.py", False, ("--json", "x")),
        ("--threshold=1 --quiet app.py", "app.py", False, ()),
        ("-m pytest -x -m slow", "pytest", True, ("-x", "-m", "slow")),
        ("-mpytest -x", "pytest", True, ("-x",)),
        ("--fail-on-block -m a.b --help", "a.b", True, ("--help",)),
        ("-- -odd.py -h", "-odd.py", False, ("-h",)),
    ],
)
def test_the_program_and_what_is_its_own(line: str, program: str, is_module: bool, arguments: tuple[str, ...]) -> None:
    options = parse_run_options(line.split())
    assert (options.program, options.is_module, options.arguments) == (program, is_module, arguments)


@pytest.mark.parametrize("argv", [["-c", "print(1)", "-x"], ["-cprint(1)", "-x"]])
def test_code_is_a_program(argv: list[str]) -> None:
    options = parse_run_options(["--quiet", *argv])
    assert (options.program, options.is_code, options.arguments) == ("print(1)", True, ("-x",))


def test_defaults() -> None:
    options = parse_run_options(["app.py"])
    assert (options.threshold, options.hang_after, options.json) == (0.2, 10.0, None)
    assert not options.fail_on_block
    assert not options.quiet


def test_all_options(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    line = f"--threshold 0.5 --hang-after 0 --json {file} --include a --include b --exclude c --fail-on-block app.py"
    options = parse_run_options(line.split())
    assert (options.threshold, options.hang_after, options.json) == (0.5, 0.0, str(file))
    assert options.patterns.include == ("a", "b")
    assert options.patterns.exclude == ("c",)
    assert options.fail_on_block


def test_the_json_file_is_found_again_after_a_chdir() -> None:
    assert parse_run_options(["--json", "x.json", "app.py"]).json == os.path.abspath("x.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name the program to run"),
        ("--quiet", "name the program to run"),
        ("-m", "-m needs the name of a module"),
        ("-c", "-c needs code"),
        ("-W error app.py", "write `python -W ... -m loopwatch run ...`"),
        ("-Xdev app.py", "write `python -X ... -m loopwatch run ...`"),
        ("--threshold 0 app.py", "seconds above 0"),
        ("--threshold -1 app.py", "seconds above 0"),
        ("--threshold nan app.py", "finite"),
        ("--threshold inf app.py", "finite"),
        ("--threshold fast app.py", "number of seconds"),
        ("--hang-after -1 app.py", "or 0 for never"),
        (
            "--treshold 1 app.py",
            "no such option: --treshold. Did you mean --threshold? There are --help, --thre",
        ),
        ("--thresh 1 app.py", "--thresh"),
        ("--json /no/such/folder/x.json app.py", "mkdir -p /no/such/folder"),
        ("--json / app.py", "is a folder"),
        ("--json= app.py", "name the file"),
    ],
)
def test_mistakes_end_at_once_with_what_to_do(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_run_options(line.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_help_gives_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "in seconds (default: 0.2)" in text
    assert "0: never (default: 10)" in text
    assert "86" in text


def test_version_and_missing_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert "loopwatch 0.1.0" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
