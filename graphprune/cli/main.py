"""The frame of the command line: finds verbs, turns errors into one line and an exit code, sets up the log.

Verbs are modules that expose a click command named ``command``; a module is imported only when its verb is called, so
that ``graphprune --help`` loads nothing but click. A command may return an exit code (an ``int``); else it is 0.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from graphprune._version import __version__
from graphprune.cli.signals import Terminated, orderly_end
from graphprune.cli.status import status
from graphprune.errors import GraphpruneError

__all__ = ["VERBS", "main"]

#: verb -> (module that exposes ``command``, help in one line)
VERBS: dict[str, tuple[str, str]] = {
    "analyze": ("graphprune.cli.analyze", "Groups that can be pruned, what they govern, and what refuses and why."),
    "explain": ("graphprune.cli.explain", "What an axis is tied to, or why it cannot be cut."),
    "export": ("graphprune.cli.export", "Prune to a target, prove the cut, measure it, write the artefacts."),
    "finetune": ("graphprune.cli.finetune", "Train a pruned network to give what the original gives."),
    "profile": ("graphprune.cli.profile", "Step curves of this device, for latency targets elsewhere."),
    "bench": ("graphprune.cli.bench", "Measured latency of models, and their ratios with intervals."),
    "verify": ("graphprune.cli.verify", "Prove that a pruned model equals its masked original."),
    "gate": ("graphprune.cli.gate", "Hold an artefact to its manifest: files, proof and time; for pipelines."),
    "criteria": ("graphprune.cli.criteria", "Ways to rank units, and what each needs."),
    "backends": ("graphprune.cli.backends", "Runtimes that can build and time networks here."),
}

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it

# What a user can mend: the disk is full, a path is not there or may not be used.
_USER_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


@dataclass
class _Verbosity:
    """How much to say; filled in by -v and -q wherever they stand on the line."""

    traceback: bool = False
    silent: bool = False

    def verbose(self) -> None:
        self.traceback = True
        logging.getLogger("graphprune").setLevel(logging.DEBUG)
        logging.getLogger("onnx_ir").setLevel(logging.WARNING)

    def shows_progress(self) -> bool:
        """Not where the log says every step, nor beside data."""
        context = click.get_current_context(silent=True)
        data = context is not None and bool(context.params.get("json_output"))
        return not (self.traceback or self.silent or data)

    def quiet(self) -> None:
        self.silent = True
        logging.getLogger("graphprune").setLevel(logging.ERROR)


def _verbosity_options() -> list[click.Option]:
    def verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(_Verbosity).verbose()

    def quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(_Verbosity).quiet()

    return [
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=verbose,
            help="Log every step; show tracebacks.",
        ),
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=quiet, help="Log errors only."),
    ]


class _LazyGroup(click.Group):
    """A group whose commands stand in ``VERBS`` and are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(VERBS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{VERBS[cmd_name][0]}.command is a {type(command).__name__}, not a click command")
        known = {name for param in command.params for name in param.opts}
        # Verbs need not think of -v and -q: they are accepted after every verb as before it.
        command.params.extend(option for option in _verbosity_options() if known.isdisjoint(option.opts))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(VERBS)}"
            raise click.UsageError(f"no verb {args[0]!r}: {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.command(
    cls=_LazyGroup,
    name="graphprune",
    params=_verbosity_options(),
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done; 1 internal error; 2 usage or unreadable input; 3 target cannot be met; "
    "4 verification failed; 5 too noisy to say; 6 nothing prunable; 130 interrupted.",
)
@click.version_option(__version__, prog_name="graphprune", message="%(prog)s %(version)s")
def _cli() -> None:
    """Prune a trained network: physically smaller, proven equal to its masked original, measured on this machine."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the words after ``graphprune``; those of this process by default.

    Returns:
        The exit code: 0 done, 1 internal error, 2 usage or unreadable input, the class's own code for a
        ``GraphpruneError``, 130 interrupted, 143 terminated (129 by SIGHUP), 141 when whoever read the output went
        away.
    """
    verbosity = _Verbosity()
    with orderly_end(), _log_to_stderr():
        try:
            return _run(sys.argv[1:] if args is None else list(args), verbosity)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return EXIT_USAGE
        except (click.Abort, KeyboardInterrupt):
            return _fail("interrupted", EXIT_INTERRUPTED, verbosity)
        except Terminated as ended:
            return _fail(f"terminated by {ended.name}", int(ended.code or 0), verbosity)
        except BrokenPipeError:
            # The interpreter flushes stdout once more when it ends; give it something that cannot fail.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except Exception as error:
            return _fail(*_as_line(error), verbosity)


def _run(words: list[str], verbosity: _Verbosity) -> int:
    # Not click's own main(): it would answer a broken pipe and an interrupt in its own way.
    code: object
    try:
        with _cli.make_context("graphprune", words, obj=verbosity) as context, status(verbosity.shows_progress):
            code = _cli.invoke(context)
    except click.exceptions.Exit as ended:  # --help and --version end this way
        code = ended.exit_code
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _as_line(error: Exception) -> tuple[str, int]:
    """What to say about an error, and the exit code it means."""
    if isinstance(error, GraphpruneError):
        return f"error: {error}", error.exit_code
    if isinstance(error, click.ClickException):
        text = error.format_message().rstrip(".")
        if isinstance(error, click.UsageError) and error.ctx is not None:
            text += f" (see {error.ctx.command_path} --help)"
        return f"error: {text}", EXIT_USAGE
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS and (error.filename or error.errno == errno.ENOSPC):
        where = f"{os.fspath(error.filename)!r}: " if error.filename else ""
        return f"error: {where}{(error.strerror or 'cannot be used').lower()}", EXIT_USAGE
    if isinstance(error, MemoryError):
        return f"error: out of memory ({error or 'no more could be had'})", EXIT_INTERNAL
    kind = type(error).__name__
    return f"internal error: {kind}: {error} (run with -v for the traceback; please report)", EXIT_INTERNAL


def _fail(text: str, code: int, verbosity: _Verbosity) -> int:
    if verbosity.traceback:
        traceback.print_exc()
    print(f"graphprune: {_one_line(text)}", file=sys.stderr)
    return code


_LONGEST = 4000  # characters of a message; a hostile file's shapes and lists of names can be far longer


def _one_line(text: str) -> str:
    """The text on one line and without control characters: names out of a file must not steer a terminal."""
    joined = " ".join(line.strip() for line in text.splitlines())
    if len(joined) > _LONGEST:
        joined = f"{joined[:_LONGEST]} ..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = _one_line(record.getMessage())
        if record.levelno != logging.INFO:
            text = f"{record.levelname.lower()}: {text}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f"graphprune: {text}"


class _Stderr(logging.Handler):
    """Looks stderr up for each line: while a progress bar is shown, it makes room for them."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            print(self.format(record), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Send the log to stderr for the length of one command, and leave the process's logging as it was."""
    handler = _Stderr()
    handler.setFormatter(_LineFormatter())
    ours, container = logging.getLogger("graphprune"), logging.getLogger("onnx_ir")
    levels = ours.level, container.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    container.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(levels[0])
        container.setLevel(levels[1])
