"""The notation of rules: one line per operator, after einops and Shardy's sharding rules.

::

    Conv     n (g i) x*, (g o) i k*, (g o)? -> n (g o) y*   | g=@group:1 | whole: x y k | macs: n g i o k y

    operands and results   separated by ``,``; ``?`` after an operand or result makes it optional; ``...`` repeats the
                           operand before it; ``.`` is an operand whose axes are never cut (sizes, indices),
                           ``_`` one of which only the type or the presence matters
    axes                   a letter, ``x*`` (any number of axes, aligned from the right, broadcasting), ``(a b)``
                           row-major product, ``(a + b)`` segments one after another, a number (a whole factor),
                           ``h'`` the same indices fed back
    clauses after ``|``    ``g=@group:1`` size read from an attribute (with its default) and written back to it;
                           ``(k r)=@heads`` the size of a product; ``g=4`` a size; ``whole:`` never cut;
                           ``stat:`` a statistic is computed over it; ``zero:`` one that zeros leave as it is, so that
                           the operand is silenced there instead;
                           ``macs:`` letters whose product is the number of multiply-accumulates (``+`` adds terms);
                           ``scale:`` index of the operand that scales what passes; ``mean:`` and ``variance:`` of
                           those that hold what operand 0 had in training, over all but their axis
                           ``silent:`` index of the one operand that zeros silence, where zeros mean something else in
                           the others (they have zero points)

A letter in operands and results *passes*, one in operands only is *contracted*, one in results only is new.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from graphprune.errors import NotationError, RuleError

__all__ = [
    "Axis",
    "Factor",
    "Layout",
    "Letter",
    "Line",
    "Product",
    "Segments",
    "lay_out",
    "parse",
    "write",
    "write_line",
]


@dataclass(frozen=True)
class Letter:
    """A named axis. ``star``: any number of axes; ``fed_back``: an operand bears indices made by the same node."""

    name: str
    star: bool = False
    fed_back: bool = False


@dataclass(frozen=True)
class Factor:
    """A number: that many indices, never cut."""

    n: int


@dataclass(frozen=True)
class Product:
    """Row-major product, outermost first."""

    terms: tuple[Axis, ...]


@dataclass(frozen=True)
class Segments:
    """Segments one after another."""

    terms: tuple[Axis, ...]


Axis = Letter | Factor | Product | Segments


@dataclass(frozen=True)
class Operand:
    """The axes of one operand or result; ``axes`` is ``None`` for an opaque one (``.``) or an ignored one (``_``)."""

    axes: tuple[Axis, ...] | None
    optional: bool = False
    ignored: bool = False


@dataclass(frozen=True)
class Attribute:
    """A size that an attribute holds; ``default`` where the node leaves it out."""

    name: str
    default: int | None = None


@dataclass(frozen=True)
class Line:
    """A parsed rule."""

    text: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    repeats: bool = False
    attributes: tuple[tuple[tuple[str, ...], Attribute], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    whole: frozenset[str] = frozenset()
    stat: frozenset[str] = frozenset()
    zero: frozenset[str] = frozenset()
    macs: tuple[tuple[str | int, ...], ...] = ()
    scale: int | None = None
    mean: int | None = None
    variance: int | None = None
    silent: int | None = None


#: clauses that name an operand by its index
_INDICES = ("scale", "mean", "variance", "silent")
_TOKEN = re.compile(r"\s*(->|\.\.\.|[A-Za-z][A-Za-z_0-9]*|_|\d+|[()+*?',.|:=@])")


@dataclass(frozen=True)
class _Token:
    text: str
    at: int


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[_Token] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self.error(f"{text[at]!r} means nothing here", at)
            self.tokens.append(_Token(match.group(1), match.start(1)))
            at = match.end()
        self.at = 0

    def error(self, what: str, column: int | None = None) -> NotationError:
        if column is None:
            column = self.tokens[self.at].at if self.at < len(self.tokens) else len(self.text)
        return NotationError(f"{what}\n  {self.text}\n  {' ' * column}^")

    def peek(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def shown(self) -> str:
        """The next token for a message."""
        return repr(self.peek()) if self.peek() else "the end of the line"

    def take(self, *expected: str) -> str:
        token = self.peek()
        if expected and token not in expected:
            raise self.error(f"expected {' or '.join(map(repr, expected))}, found {self.shown()}")
        self.at += 1
        return token

    def name(self, what: str) -> str:
        token = self.peek()
        if not token[:1].isalpha():
            raise self.error(f"expected {what}, found {self.shown()}")
        return self.take()

    def number(self, what: str) -> int:
        if not self.peek().isdigit():
            raise self.error(f"expected {what}, found {self.shown()}")
        return int(self.take())


def _axis(reader: _Reader) -> Axis:
    token = reader.peek()
    if token.isdigit():
        if int(token) < 1:
            raise reader.error("a factor is at least 1")
        return Factor(int(reader.take()))
    if token == "(":
        opened = reader.tokens[reader.at].at
        reader.take()
        segments: list[list[Axis]] = [[]]
        while reader.peek() != ")":
            if reader.peek() in ("->", "|", ""):
                raise reader.error("this bracket is never closed", opened)
            if reader.peek() == "+":
                if not segments[-1]:
                    raise reader.error("a segment is missing before '+'")
                reader.take()
                segments.append([])
            else:
                column = reader.tokens[reader.at].at
                term = _axis(reader)
                if isinstance(term, Letter) and term.star:
                    raise reader.error("a starred letter stands outside of brackets", column)
                segments[-1].append(term)
        if not segments[-1]:
            raise reader.error("these brackets hold nothing" if len(segments) == 1 else "a segment is missing")
        reader.take()
        terms = tuple(part[0] if len(part) == 1 else Product(tuple(part)) for part in segments)
        return terms[0] if len(terms) == 1 else Segments(terms)
    name = reader.name("an axis")
    star = reader.peek() == "*"
    if star:
        reader.take()
    fed_back = reader.peek() == "'"
    if fed_back:
        reader.take()
    return Letter(name, star, fed_back)


def _operands(reader: _Reader, ends: tuple[str, ...]) -> tuple[tuple[Operand, ...], bool]:
    operands: list[Operand] = []
    while True:
        if reader.peek() == "...":
            if "->" not in ends:
                raise reader.error("'...' stands among the operands")
            if not operands:
                raise reader.error("'...' repeats the operand before it, and there is none")
            reader.take()
            if reader.peek() not in ends:
                raise reader.error("'...' stands last")
            return tuple(operands), True
        ignored = reader.peek() == "_"
        if reader.peek() in (".", "_"):
            reader.take()
            axes = None
        else:
            terms: list[Axis] = []
            while reader.peek() not in (",", "?", *ends):
                if reader.peek() in ("|", "") and "->" in ends:
                    raise reader.error("the line has no '->'")
                column = reader.tokens[reader.at].at
                terms.append(_axis(reader))
                if sum(isinstance(term, Letter) and term.star for term in terms) > 1:
                    raise reader.error("an operand has one starred letter at the most", column)
            axes = tuple(terms)
        optional = reader.peek() == "?"
        if optional:
            reader.take()
        operands.append(Operand(axes, optional, ignored))
        if reader.peek() in ends:
            return tuple(operands), False
        reader.take(",", *ends)


def _letters(axis: Axis) -> list[Letter]:
    if isinstance(axis, Letter):
        return [axis]
    return [] if isinstance(axis, Factor) else [one for term in axis.terms for one in _letters(term)]


def letters_of(axes: tuple[Axis, ...] | None) -> list[Letter]:
    """Every letter that stands on some axes, in order."""
    return [one for axis in axes or () for one in _letters(axis)]


@lru_cache(maxsize=4096)
def parse(text: str) -> Line:
    """Read one line.

    Raises:
        NotationError: quotes the line and points at the column.
    """
    reader = _Reader(text)
    operands, repeats = _operands(reader, ("->",))
    reader.take("->")
    results, _ = _operands(reader, ("|", ""))
    known = {one.name for operand in (*operands, *results) for one in letters_of(operand.axes)}

    def letter() -> str:
        column = reader.tokens[reader.at].at if reader.at < len(reader.tokens) else None
        name = reader.name("a letter")
        if name not in known:
            raise reader.error(f"{name!r} stands on no axis of this line", column)
        return name

    attributes: dict[tuple[str, ...], Attribute] = {}
    sizes: dict[str, int] = {}
    marks: dict[str, set[str]] = {"whole": set(), "stat": set(), "zero": set()}
    macs: list[list[str | int]] = []
    given: dict[str, int] = {}
    while reader.peek() == "|":
        reader.take()
        column = reader.tokens[reader.at].at if reader.at < len(reader.tokens) else None
        if reader.peek() == "(":  # an attribute that holds the size of a product
            reader.take()
            product = [letter()]
            while reader.peek() != ")":
                product.append(letter())
            for token in (")", "=", "@"):
                reader.take(token)
            attributes[tuple(product)] = Attribute(reader.name("an attribute"))
            continue
        head = reader.name("a clause")
        if reader.peek() == "=":
            if head not in known:
                raise reader.error(f"{head!r} stands on no axis of this line", column)
            while True:
                reader.take("=")
                if reader.peek() == "@":
                    reader.take()
                    name = reader.name("an attribute")
                    default = None
                    if reader.peek() == ":":
                        reader.take()
                        default = reader.number("a default")
                    attributes[(head,)] = Attribute(name, default)
                else:
                    sizes[head] = reader.number("a size or '@attribute'")
                if reader.peek() in ("|", ""):
                    break
                head = letter()
            continue
        if head not in (*marks, "macs", *_INDICES):
            raise reader.error(
                f"no clause is called {head!r}; there are {', '.join((*marks, 'macs', *_INDICES))} and letter=size",
                column,
            )
        reader.take(":")
        if head in _INDICES:
            given[head] = reader.number("the index of an operand")
        elif head == "macs":
            macs.append([])
            while reader.peek() not in ("|", ""):
                if reader.peek() == "+":
                    reader.take()
                    macs.append([])
                elif reader.peek().isdigit():
                    macs[-1].append(int(reader.take()))
                else:
                    macs[-1].append(letter())
        else:
            while reader.peek() not in ("|", ""):
                marks[head].add(letter())
    reader.take("")
    return Line(
        text,
        operands,
        results,
        repeats,
        tuple(attributes.items()),
        tuple(sizes.items()),
        frozenset(marks["whole"]),
        frozenset(marks["stat"]),
        frozenset(marks["zero"]),
        tuple(tuple(term) for term in macs),
        **given,
    )


def write(axis: Axis) -> str:
    """The text of an axis, as in a rule's line."""
    if isinstance(axis, Letter):
        return axis.name + "*" * axis.star + "'" * axis.fed_back
    if isinstance(axis, Factor):
        return str(axis.n)
    joint = " + " if isinstance(axis, Segments) else " "
    return "(" + joint.join(write(term) for term in axis.terms) + ")"


def _write_operand(operand: Operand) -> str:
    axes = ("_" if operand.ignored else ".") if operand.axes is None else " ".join(write(axis) for axis in operand.axes)
    return axes + "?" * operand.optional


def write_line(line: Line) -> str:
    """The text of a line; ``parse`` reads the same line from it."""
    ins = ", ".join([*map(_write_operand, line.operands), *["..."] * line.repeats])
    outs = ", ".join(map(_write_operand, line.results))
    clauses = [
        f"{_bracket(letters)}=@{source.name}" + (f":{source.default}" if source.default is not None else "")
        for letters, source in line.attributes
    ]
    clauses += [f"{letter}={n}" for letter, n in line.sizes]
    marks = {"whole": line.whole, "stat": line.stat, "zero": line.zero}
    clauses += [f"{kind}: {' '.join(sorted(names))}" for kind, names in marks.items() if names]
    if line.macs:
        clauses.append("macs: " + " + ".join(" ".join(map(str, term)) for term in line.macs))
    clauses += [f"{kind}: {k}" for kind in _INDICES if (k := getattr(line, kind)) is not None]
    return " | ".join([f"{ins} -> {outs}".strip(), *clauses])


@dataclass(frozen=True)
class Layout:
    """A line fitted to the ranks of a node: stars are spelled out (``x.0`` is the last axis of ``x*``)."""

    line: Line
    operands: tuple[tuple[Axis, ...] | None, ...]
    results: tuple[tuple[Axis, ...] | None, ...]
    passing: frozenset[str]
    contracted: frozenset[str]
    whole: frozenset[str]
    stat: frozenset[str]
    zero: frozenset[str]
    macs: tuple[tuple[str | int, ...], ...]
    ignored: frozenset[int]


def _spell(operand: Operand, rank: int | None, what: str) -> tuple[Axis, ...] | None:
    if rank is None or operand.axes is None:
        return None
    stars = [i for i, axis in enumerate(operand.axes) if isinstance(axis, Letter) and axis.star]
    spare = rank - len(operand.axes) + len(stars)
    if spare < 0 or (spare and not stars):
        shown = " ".join(write(axis) for axis in operand.axes) or "a scalar"
        raise RuleError(f"{what} has {rank} axes, the rule describes {shown!r}")
    if not stars:
        return operand.axes
    at = stars[0]
    star = operand.axes[at]
    assert isinstance(star, Letter)
    spelled = tuple(replace(star, name=f"{star.name}.{i}", star=False) for i in reversed(range(spare)))
    return operand.axes[:at] + spelled + operand.axes[at + 1 :]


@lru_cache(maxsize=16384)
def lay_out(line: Line, operands: tuple[int | None, ...], results: tuple[int | None, ...]) -> Layout:
    """Fit a line to a node's ranks (``None``: that operand or result is absent).

    Raises:
        RuleError: the ranks do not fit.
    """
    described = list(line.operands)
    if line.repeats:
        described += [described[-1]] * (len(operands) - len(described))
    if any(rank is not None for rank in operands[len(described) :]):
        raise RuleError(f"{len(operands)} operands are given, the rule describes {len(described)}")
    given = operands + (None,) * (len(described) - len(operands))
    for i, (operand, rank) in enumerate(zip(described, given, strict=False)):
        if rank is None and not operand.optional:
            raise RuleError(f"operand {i} is missing")
    ins = tuple(_spell(o, r, f"operand {i}") for i, (o, r) in enumerate(zip(described, given, strict=False)))
    if any(rank is not None for rank in results[len(line.results) :]):
        raise RuleError(f"{len(results)} results are given, the rule describes {len(line.results)}")
    outs = tuple(_spell(o, r, f"result {i}") for i, (o, r) in enumerate(zip(line.results, results, strict=False)))
    named_in = {one.name for axes in ins for one in letters_of(axes)}
    named_out = {one.name for axes in outs for one in letters_of(axes)}

    def spelled(marked: frozenset[str]) -> frozenset[str]:
        return frozenset(name for name in named_in | named_out if name.split(".")[0] in marked)

    macs = []
    for term in line.macs:
        factors: list[str | int] = []
        for factor in term:
            if isinstance(factor, int):
                factors.append(factor)
            else:
                factors += sorted(spelled(frozenset((factor,))))
        macs.append(tuple(factors))
    return Layout(
        line,
        ins,
        outs,
        frozenset(named_in & named_out),
        frozenset(named_in - named_out),
        spelled(line.whole),
        spelled(line.stat),
        spelled(line.zero),
        tuple(macs),
        frozenset(i for i, operand in enumerate(described) if operand.ignored),
    )


def _bracket(letters: tuple[str, ...]) -> str:
    return letters[0] if len(letters) == 1 else f"({' '.join(letters)})"
