"""What holds for every command."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
COMMANDS = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]
CALL = """
import importlib, sys
module, function = {target!r}.split(":")
try:
    code = getattr(importlib.import_module(module), function)({arguments!r})
except SystemExit as end:
    code = end.code
print("imported:", sorted({{"torch", "ray", "sqlalchemy", "matplotlib", "numpy"}} & sys.modules.keys()))
sys.exit(code)
"""


def call(command: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    script = CALL.format(target=COMMANDS[command], arguments=arguments)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_at_once_and_has_examples(command: str) -> None:
    """Nothing slow is imported for it, and every example begins as something one can type."""
    ended = call(command, ["--help"])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: {command} ")
    assert re.search(rf'\n  (eval "\$\()?{command} ', ended.stdout)
    assert "imported: []" in ended.stdout
    assert "(default: None)" not in ended.stdout
    assert "(default: False)" not in ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_is_one_line_at_once(command: str) -> None:
    ended = call(command, ["--no-such-option"])
    assert ended.returncode == 2
    assert "imported: []" in ended.stdout
    assert ended.stderr.startswith(f"{command}: ")
    assert len(ended.stderr.splitlines()) == 1
    assert f"{command} --help shows the options" in ended.stderr


def test_who_has_read_enough_is_no_traceback() -> None:
    script = (
        "import sys; from detector.command import guarded\n"
        "def much():\n    for _ in range(100_000): print('a line of output')\n    return 0\n"
        "sys.exit(guarded('nas-status', much))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "a line of output\n"
    process.stdout.close()
    assert process.stderr.read() == "nas-status: [Errno 32] Broken pipe\n"
    process.stderr.close()
    assert process.wait(30) == 1


COMPLETED = """
eval "$({python} -c 'from nas.commands import completion; completion(["bash"])')"
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
function=$(complete -p "${{COMP_WORDS[0]}}" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function; echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("nas-search --epi", ["--episodes"]),
        ("nas-search --algorithm r", ["reinforce", "random"]),
        ("nas-control re", ["retry"]),
        ("train-final --data fo", ["folder"]),
        ("train-final --arch fo", ["found.json", "folder"]),
        ("detect --nms g", ["gaussian"]),
        ("nas-completion z", ["zsh"]),
    ],
)
def test_bash_completes_options_choices_and_files(tmp_path: Path, words: str, completions: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "found.json").touch()
    script = COMPLETED.format(python=sys.executable, words=words)
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert sorted(ended.stdout.split()) == sorted(completions)


def test_ray_starts_and_trials_run_without_what_they_do_not_need() -> None:
    """PyTorch is imported while Ray starts, and timm, which takes a second, not at all once all is prepared."""
    script = (
        "import sys, nas.service, nas.cluster; print({'torch', 'timm'} & sys.modules.keys());"
        "import nas.session; print({'timm'} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\nset()\n"
