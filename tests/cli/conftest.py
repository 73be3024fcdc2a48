"""The command in this process."""

import sys

import pytest

from karat.cli import base


@pytest.fixture
def karat(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["karat", *map(str, arguments)])
        code = 0
        try:
            base.main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
