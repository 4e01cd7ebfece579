from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import hypothesis
import pytest

# The same examples on every machine and run; a slow machine is not a failure.
hypothesis.settings.register_profile("graphprune", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("graphprune")


@dataclass(frozen=True)
class CliResult:
    code: int
    out: str
    err: str


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with one MatMul."""
    import onnx
    from onnx_files import one_node

    path = tmp_path / "model.onnx"
    onnx.save(one_node(), path)
    return path


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., CliResult]:
    """Run ``graphprune WORDS...`` in this process."""
    from graphprune.cli.main import main

    def run(*words: object) -> CliResult:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return CliResult(code, captured.out, captured.err)

    return run


@pytest.fixture
def add_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Register a function as a verb of the command line, for one test."""
    from graphprune.cli import main as frame

    def add(function: Callable[..., object], *params: click.Parameter, name: str = "try") -> None:
        module = types.ModuleType(f"fake_verb_{name}")
        module.command = click.Command(name, callback=function, params=list(params))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(frame.VERBS, name, (module.__name__, "A verb of the tests."))

    return add
