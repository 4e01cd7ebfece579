from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphprune.errors import GraphpruneError, InputError, UsageError
from graphprune.frontends.modules import is_reference, resolve

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def path_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "net.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models_zoo/vision.py:resnet50", True),
        ("models_zoo.vision:resnet50", True),
        ("net:Net.small", True),
        ("net.py", True),
        ("net.py:", True),
        ("C:\\nets\\net.py:build", True),
        ("model.onnx", False),
        ("model.onnx:x", False),
        ("C:\\nets\\model.onnx", False),
        ("https://example.org/model.onnx", False),
        ("models_zoo.vision", False),
    ],
)
def test_is_reference(text: str, expected: bool) -> None:
    assert is_reference(text) is expected


@pytest.mark.parametrize(
    ("text", "name", "kind", "message"),
    [
        ("", "", UsageError, "names nothing in it: write .*net.py:NAME; it has no function at all"),
        ("def one(): ...\ndef two(): ...\nx = 3", "", UsageError, "it has 'one', 'two'"),
        ("def resnet(): ...", ":resnt", UsageError, "has no 'resnt'; it has 'resnet'"),
        ("x = 3", ":x", UsageError, "is a int, not a function that returns a module"),
        ("def build(width): ...", ":build", UsageError, "cannot be called without arguments .*'width'"),
        ("def f(:\n  pass", ":f", InputError, r"cannot be imported: SyntaxError: .*line 1"),
        ("1 / 0", ":f", InputError, "cannot be imported: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", ":f", InputError, "cannot be imported: SystemExit: 3"),
        ("import no_such_thing", ":f", InputError, "needs the module 'no_such_thing', which is not installed"),
        ("def f():\n  import no_such_thing", ":f", InputError, "needs the module 'no_such_thing'"),
        ("def f(): raise ValueError('too wide')", ":f", InputError, "net.py:f' raised ValueError: too wide"),
        ("def f(): return 5", ":f", InputError, "returned int; it must return a torch.nn.Module"),
        ("def f(): return 1, 2, 3", ":f", InputError, r"returned a tuple \(int, int, int\)"),
    ],
)
def test_references_that_do_not_work(
    write: Write, text: str, name: str, kind: type[GraphpruneError], message: str
) -> None:
    if "returned" in message:
        pytest.importorskip("torch")
    with pytest.raises(kind, match=message) as caught:
        resolve(write(text) + name)()
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.py' does not exist"):
        resolve(f"{tmp_path}/nowhere.py:f")
    with pytest.raises(InputError, match=r"there is no module 'no_such_package\.nets' to import"):
        resolve("no_such_package.nets:f")
    with pytest.raises(UsageError, match="'json' has no 'lods'; it has 'loads', 'load'"):
        resolve("json:lods")


def test_the_original_error_is_chained(write: Write) -> None:
    with pytest.raises(InputError) as caught:
        resolve(write("def f(): raise ValueError('too wide')") + ":f")()
    assert isinstance(caught.value.__cause__, ValueError)


def test_pytorch_that_is_not_installed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs PyTorch, which is not installed: pip install graphprune\[torch\]"):
        resolve(write("import torch\ndef f(): ...") + ":f")
    with pytest.raises(InputError, match=r"pip install graphprune\[torch\]"):
        resolve(write("def f():\n  import torch") + ":f")()

    from graphprune.frontends.torch import read_module

    with pytest.raises(InputError, match=r"a PyTorch module needs PyTorch.*pip install graphprune\[torch\]"):
        read_module(object())


def test_importing_the_front_end_imports_nothing_heavy() -> None:
    code = (
        "import sys, graphprune.frontends.torch; sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnx_ir')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_may_import_its_neighbours_and_its_package(write: Write) -> None:
    write("WIDTH = 3", "helper_of_net.py")
    with pytest.raises(InputError, match=r"returned int|needs PyTorch"):
        resolve(write("import helper_of_net\ndef f(): return helper_of_net.WIDTH") + ":f")()
    for name in ("zoo_of_test/__init__.py", "zoo_of_test/sub/__init__.py"):
        write("", name)
    write("NAME = 'deep'", "zoo_of_test/base.py")
    text = "from zoo_of_test.base import NAME\nfrom ..base import NAME as again\nassert NAME is again\ndef f(): ..."
    assert callable(resolve(write(text, "zoo_of_test/sub/net.py") + ":f"))
    assert sys.modules["zoo_of_test.sub.net"].__name__ == "zoo_of_test.sub.net"


def test_two_files_of_one_name_are_two_modules(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        with pytest.raises(InputError, match=f"raised KeyError: '{folder}'"):
            resolve(write(f"print('hello')\ndef f(): raise KeyError('{folder}')", f"{folder}/net.py") + ":f")()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\nhello\n")
