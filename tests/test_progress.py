"""Progress: shown on a terminal alone, and never mixed with results."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import models
import pytest

import graphprune
from graphprune import progress
from graphprune.cli.main import main


class Heard:
    def __init__(self) -> None:
        self.said: list[object] = []

    def begin(self, step: str) -> None:
        self.said.append(step)

    def advance(self, done: float) -> None:
        self.said.append(done)

    def end(self) -> None:
        self.said.append("end")


def test_steps_are_told_in_order(tmp_path):
    heard = Heard()
    path = models.residual().save(tmp_path / "net.onnx")
    with progress.listening(heard):
        graphprune.load(path).export(tmp_path / "out", target_params="0.5x", measure=None)
    names = [one for one in heard.said if one != "end"]
    assert names == ["load", "observe", "couple", "score", "allocate", "shrink", "verify"]
    assert heard.said.count("end") == len(names)
    said = len(heard.said)
    graphprune.load(path)
    assert len(heard.said) == said


def test_a_step_within_itself_is_told_once_and_ends_when_it_fails():
    heard = Heard()
    progress.advance(0.5)  # nobody listens
    with progress.listening(heard), pytest.raises(ValueError), progress.step("measure"), progress.step("measure"):
        progress.advance(0.25)
        progress.advance(7)
        raise ValueError
    assert heard.said == ["measure", 0.25, 1.0, "end"]


def _on_a_terminal(*words: object) -> tuple[str, str]:
    """stdout, and what stderr shows where that is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "graphprune", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as child:
        os.close(theirs)
        seen = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            seen += piece
        assert child.stdout is not None
        out = child.stdout.read().decode()
    os.close(ours)
    assert child.returncode == 0
    return out, seen.decode()


def test_a_terminal_is_told_and_the_cursor_is_back(tmp_path):
    out, seen = _on_a_terminal("analyze", models.residual().save(tmp_path / "net.onnx"))
    assert "reading the network" in seen and "running it once" in seen
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") > 0
    assert out.startswith("inputs ") and "\x1b" not in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("words", "told"), [((), True), (("-q",), False), (("--json",), False), (("-v",), False)], ids=str
)
def test_it_is_quiet_where_that_was_asked(words, told, tmp_path, monkeypatch, capsys):
    path = models.residual().save(tmp_path / "net.onnx")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["analyze", str(path), *words]) == 0
    assert isinstance(sys.stderr, Terminal)
    assert ("reading the network" in sys.stderr.getvalue()) == told
    assert (sys.stderr.getvalue() == "") == (words in (("-q",), ("--json",)))
    assert "reading" not in capsys.readouterr().out


def test_a_failure_leaves_the_terminal_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["analyze", str(tmp_path / "missing.onnx")]) == 2
    assert isinstance(sys.stderr, Terminal)
    assert sys.stderr.getvalue().splitlines()[-1].rpartition("\r")[2].count("graphprune: error: ") == 1


def test_nothing_is_told_in_a_pipe(tmp_path, run_cli):
    result = run_cli("analyze", models.residual().save(tmp_path / "net.onnx"))
    assert (result.code, result.err) == (0, "")
