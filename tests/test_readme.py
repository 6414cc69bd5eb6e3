"""The README's code runs as it stands: Python blocks in order, and the `mrcnn` lines without placeholders."""

import re
import shlex

from click.testing import CliRunner

from keras_mrcnn.cli import main


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text):
    """The `mrcnn` lines of the README that name no file of the reader's own (written in capitals)."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines = [line.split("#")[0].strip() for line in lines if line.startswith("mrcnn ")]
    return [line for line in lines if not re.search(r"\b[A-Z]{3,}", line)]


def test_readme_code_runs(compiled, repository, tmp_path, monkeypatch):
    text = (repository / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before, after = [], []
    for command in commands(text):
        (before if command.startswith(("mrcnn shapes", "mrcnn check")) else after).append(command)
    assert len(before) >= 2 and len(after) >= 3 and len(blocks(text, "python")) >= 2
    names = {}
    for command in before:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
    for block in blocks(text, "python"):
        exec(compile(block, "README.md", "exec"), names)
    for command in after:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
