from __future__ import annotations

import errno
import logging
import subprocess
import sys

import click
import pytest

from graphprune._version import __version__
from graphprune.cli import options
from graphprune.errors import (
    GraphpruneError,
    InputError,
    NoiseError,
    NothingPrunableError,
    TargetError,
    UsageError,
    VerificationError,
)

EXAMPLE = "write for example x:1x3x224x224, x:[1,3,224,224] or, for a model with one input, 1x3x224x224"


def raising(error: BaseException):
    def verb() -> None:
        raise error

    return verb


def test_version(run_cli):
    result = run_cli("--version")
    assert (result.code, result.out) == (0, f"graphprune {__version__}\n")


def test_help_lists_the_verbs_without_importing_them(run_cli):
    result = run_cli("--help")
    assert result.code == 0
    for verb in ("analyze", "explain", "export", "bench", "verify", "backends"):
        assert f"\n  {verb} " in result.out
    assert "Exit codes: 0 done; 1 internal error; 2 usage" in result.out


def test_help_is_light():
    heavy = "{'numpy', 'scipy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich', 'networkx'}"
    program = (
        "import sys; from graphprune.cli.main import main; code = main(['--help']); "
        f"sys.exit(code or ' '.join({heavy} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_verb_the_help_is_shown_and_the_code_is_2(run_cli):
    result = run_cli()
    assert result.code == 2
    assert "VERB [ARGS]..." in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["exprot"], "graphprune: error: no verb 'exprot': did you mean 'export'? (see graphprune --help)\n"),
        (
            ["zzz"],
            "graphprune: error: no verb 'zzz': the verbs are analyze, explain, export, finetune, profile, bench, "
            "verify, gate, criteria, backends (see graphprune --help)\n",
        ),
        (["--nope"], "graphprune: error: No such option '--nope' (see graphprune --help)\n"),
    ],
)
def test_usage_errors_are_one_line_and_code_2(run_cli, words, line):
    result = run_cli(*words)
    assert (result.code, result.out, result.err) == (2, "", line)


def test_usage_errors_within_a_verb_name_the_verb(run_cli, add_verb):
    add_verb(lambda model: None, click.Argument(["model"]))
    result = run_cli("try")
    assert (result.code, result.err) == (2, "graphprune: error: Missing argument 'MODEL' (see graphprune try --help)\n")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (GraphpruneError, 1),
        (UsageError, 2),
        (InputError, 2),
        (TargetError, 3),
        (VerificationError, 4),
        (NoiseError, 5),
        (NothingPrunableError, 6),
    ],
)
def test_each_error_has_its_code(run_cli, add_verb, kind, code):
    add_verb(raising(kind("Conv 'c1': what is wrong\n   and where")))
    result = run_cli("try")
    assert (result.code, result.out) == (code, "")
    assert result.err == "graphprune: error: Conv 'c1': what is wrong and where\n"


@pytest.mark.parametrize("words", [("-v", "try"), ("try", "-v"), ("-v", "try", "--verbose")])
def test_verbose_shows_the_traceback_and_then_the_line(run_cli, add_verb, words):
    add_verb(raising(UsageError("no")))
    result = run_cli(*words)
    assert result.code == 2
    assert result.err.startswith("Traceback (most recent call last):")
    assert result.err.endswith("graphprune: error: no\n")


def test_an_unexpected_error_is_one_line_and_code_1(run_cli, add_verb):
    add_verb(raising(KeyError("w")))
    result = run_cli("try")
    assert result.code == 1
    assert result.err == ("graphprune: internal error: KeyError: 'w' (run with -v for the traceback; please report)\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "out/m"), "'out/m': no space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "'out': permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "'out': read-only file system"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "plan.json"),
            "'plan.json': no such file or directory",
        ),
    ],
)
def test_system_errors_about_paths_are_the_users(run_cli, add_verb, error, line):
    add_verb(raising(error))
    result = run_cli("try")
    assert (result.code, result.err) == (2, f"graphprune: error: {line}\n")


def test_a_system_error_without_a_path_is_internal(run_cli, add_verb):
    add_verb(raising(OSError(errno.EACCES, "Permission denied")))
    assert run_cli("try").code == 1


def test_interrupt_is_130(run_cli, add_verb):
    add_verb(raising(KeyboardInterrupt()))
    result = run_cli("try")
    assert (result.code, result.err) == (130, "graphprune: interrupted\n")


def test_a_reader_that_goes_away_is_no_error():
    program = (
        "import sys, types, click; from graphprune.cli import main as frame; m = types.ModuleType('flood');"
        "m.command = click.Command('flood', callback=lambda: print('x\\n' * 100000)); sys.modules['flood'] = m;"
        "frame.VERBS['flood'] = ('flood', ''); sys.exit(frame.main(['flood']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_names_from_a_file_cannot_steer_the_terminal(run_cli, add_verb):
    add_verb(raising(InputError("tensor \x1b[31mw\x07")))
    assert run_cli("try").err == "graphprune: error: tensor \\x1b[31mw\\x07\n"


def test_a_verb_may_return_its_code(run_cli, add_verb):
    add_verb(lambda: 3)
    assert run_cli("try").code == 3


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("try",), ["graphprune: step", "graphprune: warning: odd", "graphprune: error: bad"]),
        (
            ("try", "-v"),
            ["graphprune: debug: detail", "graphprune: step", "graphprune: warning: odd", "graphprune: error: bad"],
        ),
        (("-q", "try"), ["graphprune: error: bad"]),
        (("try", "--quiet"), ["graphprune: error: bad"]),
    ],
)
def test_the_log_goes_to_stderr(run_cli, add_verb, words, lines):
    def verb() -> None:
        log = logging.getLogger("graphprune.tests")
        log.debug("detail")
        log.info("step")
        log.warning("odd")
        log.error("bad")
        click.echo("result")

    add_verb(verb)
    logger = logging.getLogger("graphprune")
    before = (logger.level, list(logger.handlers))
    result = run_cli(*words)
    assert (result.code, result.out, result.err.splitlines()) == (0, "result\n", lines)
    assert (logger.level, list(logger.handlers)) == before


@pytest.mark.parametrize(
    ("texts", "shapes"),
    [
        (["x:1x3x224x224,y:1x16"], {"x": (1, 3, 224, 224), "y": (1, 16)}),  # trtexec
        (["x:1x3x224x224", "y:1x16"], {"x": (1, 3, 224, 224), "y": (1, 16)}),
        (["x:[1,3,224,224]"], {"x": (1, 3, 224, 224)}),  # Polygraphy
        (["x:[1,3,224,224] y:[1, 16]"], {"x": (1, 3, 224, 224), "y": (1, 16)}),
        (["'x':[1,3]", '"y:1x2"'], {"x": (1, 3), "y": (1, 2)}),
        (["x:1,3,224,224"], {"x": (1, 3, 224, 224)}),  # ONNX Runtime, onnxsim
        (["x:1,3,y:2,4"], {"x": (1, 3), "y": (2, 4)}),
        (["x:1,3,0:2"], {"x": (1, 3), "0": (2,)}),
        (["1x3x224x224"], {None: (1, 3, 224, 224)}),
        (["1,3,224"], {None: (1, 3, 224)}),
        (["[1,3]"], {None: (1, 3)}),
        (["7"], {None: (7,)}),
        (["serve:0:1x2"], {"serve:0": (1, 2)}),
        (["/enc/in.1:0:[1,2],b.2/c:3"], {"/enc/in.1:0": (1, 2), "b.2/c": (3,)}),
        (["x:[]"], {"x": ()}),
        ([], {}),
    ],
)
def test_input_shapes_in_every_spelling(texts, shapes):
    assert options.parse_input_shapes(texts) == shapes


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["x:1xAx3"], "'x:1xAx3': cannot read 'x:1xAx3'"),
        (["x"], "'x': cannot read 'x'"),
        (["x:1x3,y"], "'x:1x3,y': cannot read 'y'"),
        (["x:-1x3"], "'x:-1x3': cannot read 'x:-1x3'"),
        (["x:[batch,3]"], "'x:[batch,3]': 'batch' is not a whole number of at least 1"),
        (["x:1x0"], "'x:1x0': '0' is not a whole number of at least 1"),
        (["x:[1,,3]"], "'x:[1,,3]': '' is not a whole number of at least 1"),
        (["x:1x2", "x:1x3"], "'x:1x3': 'x' is given twice"),
        (["1x2", "1x3"], "'1x3': a shape without a name is given twice"),
        (["1x2", "y:3"], "'1x2 y:3': give every shape its input's name, or one shape alone"),
        ([" "], "' ': nothing is given"),
    ],
)
def test_input_shapes_that_cannot_be_read(texts, why):
    with pytest.raises(UsageError) as caught:
        options.parse_input_shapes(texts)
    assert str(caught.value) == f"--input-shapes {why}; {EXAMPLE}"


@pytest.mark.parametrize(("text", "seconds"), [("3", 3.0), ("0.5s", 0.5), ("500ms", 0.5), ("2min", 120.0), (".5", 0.5)])
def test_durations(text, seconds):
    assert options.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1s", "3h", "1e3", "s", "inf"])
def test_durations_that_cannot_be_read(text):
    with pytest.raises(UsageError) as caught:
        options.parse_duration(text)
    assert (
        str(caught.value) == f"--duration {text!r}: not a length of time above 0; write for example 3s, 500ms or 2min"
    )


ALL_OPTIONS = (
    options.input_shapes_option(),
    options.json_option(),
    options.seed_option(),
    options.threads_option(),
    options.atol_option(1e-4),
    options.rtol_option(None),
    options.duration_option("3s"),
    options.warm_up_ms_option(),
    options.include_option(),
    options.exclude_option(),
)


def option_params() -> list[click.Parameter]:
    def holder() -> None: ...

    for decorate in ALL_OPTIONS:
        decorate(holder)
    return list(holder.__click_params__)


def test_options_reach_the_verb_as_values(run_cli, add_verb):
    got: dict[str, object] = {}
    add_verb(lambda **values: got.update(values), *option_params())
    words = (
        "--input-shapes x:1x3 --input-shapes y:[2] --json --seed 7 --threads 2 --rtol 1e-3 --exclude head.* --exclude y"
    )
    assert run_cli("try", *words.split()).code == 0
    assert got == {
        "input_shapes": {"x": (1, 3), "y": (2,)},
        "json_output": True,
        "seed": 7,
        "threads": 2,
        "atol": 1e-4,
        "rtol": 1e-3,
        "duration": 3.0,
        "warm_up_ms": 200.0,
        "include": (),
        "exclude": ("head.*", "y"),
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--input-shapes", "x"), f"--input-shapes 'x': cannot read 'x'; {EXAMPLE}"),
        (("--atol", "-1"), "--atol -1.0: not a tolerance; write a number of at least 0, for example 1e-4"),
        (("--rtol", "nan"), "--rtol nan: not a tolerance; write a number of at least 0, for example 1e-4"),
        (
            ("--threads", "0"),
            "Invalid value for '--threads': 0 is not in the range x>=1 (see graphprune try --help)",
        ),
        (
            ("--duration", "soon"),
            "--duration 'soon': not a length of time above 0; write for example 3s, 500ms or 2min",
        ),
    ],
)
def test_bad_option_values_are_one_line(run_cli, add_verb, words, line):
    add_verb(lambda **values: None, *option_params())
    result = run_cli("try", *words)
    assert (result.code, result.err) == (2, f"graphprune: error: {line}\n")
