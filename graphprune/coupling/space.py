"""The algebra of index spaces: leaves, sums and products, solved by unification with refinement.

Every axis of every value has a :class:`Space`::

    Leaf(n)              n units, each of which could go
    Sum(a, b, ...)       segments one after another             Concat, Split, Slice
    Prod(a, b, ...)      row-major product, outermost first     Reshape, heads x head_dim, groups x channels

:func:`unify` states that two spaces are equal. It refines free leaves where one side has more structure
(``768`` becomes ``12 x 64``), everywhere at once since leaves are shared, and never copies index lists. A leaf is
*whole* once something forbids to cut it; spaces made of whole leaves collapse and never refuse. Where sums and products
do not align, a leaf is split into runs and single units (``kin`` remembers that these belong together), and what cannot
be split is made whole with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import gcd

from graphprune.errors import RuleError

__all__ = ["ONE", "Form", "Refusal", "Space", "find", "free_leaves", "leaf", "leaves", "make_stat", "make_whole"]
__all__ += ["prod", "relate", "show", "split", "sum_of", "unify", "unit", "whole"]


class Form(IntEnum):
    """Which of the three a space is."""

    LEAF = 0
    SUM = 1
    PROD = 2


@dataclass(frozen=True)
class Refusal:
    """Why something may not be cut (or only inexactly): the operator, its node, the tensor and axis, and the reason."""

    reason: str
    op: str = ""
    node: str = ""
    tensor: str = ""
    axis: int | None = None

    def __str__(self) -> str:
        where = f"{self.op} {self.node!r}: " if self.op else ""
        at = f" ({self.tensor!r} axis {self.axis})" if self.tensor and self.axis is not None else ""
        return f"{where}{self.reason}{at}"


class Kin:
    """Union-find over the pieces of one leaf that a misaligned boundary broke into single units."""

    __slots__ = ("up",)

    def __init__(self) -> None:
        self.up: Kin | None = None

    def top(self) -> Kin:
        """The representative."""
        kin = self
        while kin.up is not None:
            kin = kin.up
        return kin

    def join(self, other: Kin) -> None:
        """Make one family of two."""
        a, b = self.top(), other.top()
        if a is not b:
            b.up = a


class Space:
    """One node of the algebra; read it through :func:`find`, since a bound leaf forwards to what it was bound to."""

    __slots__ = ("form", "kids", "kin", "link", "n", "refusal", "stat")

    def __init__(self, form: Form, n: int, kids: tuple[Space, ...] = ()) -> None:
        self.form = form
        self.n = n
        self.kids = kids
        self.link: Space | None = None
        self.refusal: Refusal | None = None
        self.stat: Refusal | None = None
        self.kin: Kin | None = None

    def __repr__(self) -> str:
        return show(self)


def leaf(n: int) -> Space:
    """A fresh, free leaf of ``n`` units (``ONE`` where there is nothing to choose from)."""
    return Space(Form.LEAF, n) if n > 1 else whole(n, _SINGLE)


def unit() -> Space:
    """A single unit that can go: a piece of an axis that an index list takes apart."""
    return Space(Form.LEAF, 1)


def whole(n: int, refusal: Refusal) -> Space:
    """A leaf of ``n`` units that is never cut."""
    if n == 1:
        return ONE
    space = Space(Form.LEAF, n)
    space.refusal = refusal
    return space


_SINGLE = Refusal("there is a single index")
ONE = Space(Form.LEAF, 1)
ONE.refusal = _SINGLE


def find(space: Space) -> Space:
    """The node that ``space`` stands for now (with path compression)."""
    link = space.link
    if link is None:
        return space
    while link.link is not None:
        link = link.link
    while space.link is not None and space.link is not link:
        space.link, space = link, space.link
    return link


def _trivial(space: Space) -> bool:
    return space.n == 1 and space.form is Form.LEAF and space.refusal is not None


def prod(kids: Sequence[Space]) -> Space:
    """Row-major product, outermost factor first; whole factors of one index vanish."""
    n = 1
    kept = []
    for kid in kids:
        kid = find(kid)
        n *= kid.n
        if not _trivial(kid):
            kept.append(kid)
    if len(kept) == 1:
        return kept[0]
    return Space(Form.PROD, n, tuple(kept)) if kept else ONE


def sum_of(kids: Sequence[Space]) -> Space:
    """Segments one after another; empty segments vanish."""
    kept = [find(kid) for kid in kids if kid.n]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return whole(0, Refusal("the axis is empty"))
    return Space(Form.SUM, sum(kid.n for kid in kept), tuple(kept))


def leaves(space: Space) -> Iterator[Space]:
    """All leaves of a space in index order, one entry per occurrence."""
    space = find(space)
    if space.form is Form.LEAF:
        yield space
    else:
        for kid in space.kids:
            yield from leaves(kid)


def free_leaves(space: Space) -> Iterator[Space]:
    """The leaves that may still be cut."""
    return (one for one in leaves(space) if one.refusal is None)


def relate(parts: Iterable[Space]) -> None:
    """The free leaves of some pieces belong together, as the pieces of one leaf do."""
    family = Kin()
    for part in parts:
        for one in free_leaves(part):
            if one.kin is None:
                one.kin = family
            else:
                one.kin.join(family)


def make_whole(space: Space, refusal: Refusal) -> None:
    """Forbid cutting anything in ``space``; an earlier reason stays."""
    space = find(space)
    if space.form is Form.LEAF:
        if space.refusal is None:
            space.refusal = refusal
    else:
        for kid in space.kids:
            make_whole(kid, refusal)


def make_stat(space: Space, why: Refusal) -> None:
    """Remember that an operator computes a statistic over ``space``: removal there is not exact."""
    for one in leaves(space):
        if one.stat is None and one.refusal is None:
            one.stat = why


def show(space: Space) -> str:
    """Readable form: ``12·64`` products, ``(58+58)`` sums, ``!`` after whole leaves."""
    space = find(space)
    if space.form is Form.LEAF:
        return f"{space.n}!" if space.refusal is not None else f"{space.n}"
    if space.form is Form.SUM:
        return "(" + "+".join(show(kid) for kid in space.kids) + ")"
    return "·".join(show(kid) for kid in space.kids)


def _inherit(old: Space, parts: Sequence[Space]) -> None:
    """Pieces of a leaf carry its marks."""
    for part in parts:
        if part is ONE:
            continue
        if part.refusal is None:
            part.refusal = old.refusal
        if part.stat is None:
            part.stat = old.stat
        if old.kin is not None:
            part.kin = old.kin


def _piece(old: Space, n: int) -> Space:
    """A fresh piece of a leaf; unlike a fresh axis, a single unit of a free leaf can still go."""
    part = Space(Form.LEAF, n) if old.refusal is None else whole(n, old.refusal)
    _inherit(old, (part,))
    return part


def _occurs(one: Space, space: Space) -> bool:
    space = find(space)
    return space is one or any(_occurs(one, kid) for kid in space.kids)


def _bind(one: Space, other: Space) -> None:
    """Leaf ``one`` equals ``other``."""
    if one.refusal is not None:
        make_whole(other, one.refusal)
        return
    if other.form is Form.LEAF:
        if other.refusal is not None:
            one.refusal = other.refusal
            return
        one.link = other
        if other.stat is None:
            other.stat = one.stat
        if one.kin is not None:
            if other.kin is None:
                other.kin = one.kin
            else:
                other.kin.join(one.kin)
        return
    if _occurs(one, other):  # only factors of one index or empty segments beside it: they cannot go
        for rest in leaves(other):
            if rest is not one:
                make_whole(rest, Refusal("it would have to vanish from an axis that is equal to its own part"))
        return
    one.link = other
    if one.stat is not None:
        make_stat(other, one.stat)
    if one.kin is not None:
        for part in free_leaves(other):
            if part.kin is None:
                part.kin = one.kin
            else:
                part.kin.join(one.kin)


def unify(a: Space, b: Space) -> None:
    """State that two spaces are equal, refining both.

    Raises:
        RuleError: the sizes differ.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.n != b.n:
        raise RuleError(f"an axis of {a.n} ({show(a)}) cannot equal one of {b.n} ({show(b)})")
    if b.form is Form.LEAF:
        _bind(b, a)
    elif a.form is Form.LEAF:
        _bind(a, b)
    elif a.form is Form.PROD and b.form is Form.PROD:
        _unify_products(a, b)
    else:
        _unify_segments(a, b)


def _next(stack: list[Space], form: Form) -> Space | None:
    """Pop the next part that is not itself a sum (or product), reading through refinements."""
    while stack:
        space = find(stack.pop())
        if space.form is form:
            stack.extend(reversed(space.kids))
        elif form is Form.SUM or not _trivial(space):
            return space
    return None


def _factors(space: Space) -> list[Space]:
    stack = [space]
    return list(iter(lambda: _next(stack, Form.PROD), None))


def _unify_segments(a: Space, b: Space) -> None:
    left, right = [a], [b]
    while (x := _next(left, Form.SUM)) is not None and (y := _next(right, Form.SUM)) is not None:
        if x.n == y.n:
            unify(x, y)
            continue
        short, long, stack, other = (x, y, left, right) if x.n < y.n else (y, x, right, left)
        if long.form is Form.LEAF:
            head, tail = split(long, short.n)
            other.append(tail)
            unify(short, head)
            continue
        parts, total = [short], short.n
        while total < long.n:
            part = _next(stack, Form.SUM)
            assert part is not None  # both sides have the same size
            if total + part.n > long.n:
                part, tail = split(part, long.n - total)
                stack.append(tail)
            parts.append(part)
            total += part.n
        _unify_parts(parts, long)


def _unify_parts(parts: list[Space], product: Space) -> None:
    """Segments against one product: cut the product between its rows wherever the segments allow it."""
    row = product.n // _factors(product)[0].n
    chunks: list[list[Space]] = [[]]
    end = 0
    for part in parts:
        chunks[-1].append(part)
        end += part.n
        if end % row == 0 and end < product.n:
            chunks.append([])
    if len(chunks) == 1 and len(parts) > 1:  # no row ends where a segment does
        chunks = [parts[:1], parts[1:]]
    rest = product
    for chunk in chunks[:-1]:
        head, rest = split(rest, sum(part.n for part in chunk))
        unify(sum_of(chunk), head)
    unify(sum_of(chunks[-1]), rest)


_STRADDLE = Refusal("a segment boundary falls inside a product")
_MISALIGNED = Refusal("two products of coprime factors meet")


def split(space: Space, at: int) -> tuple[Space, Space]:
    """The first ``at`` indices and the rest, ``0 < at < n``; leaves in between are refined everywhere."""
    space = find(space)
    if space.form is Form.LEAF:
        head, tail = _piece(space, at), _piece(space, space.n - at)
        if space.refusal is None:
            space.link = Space(Form.SUM, space.n, (head, tail))
        return head, tail
    if space.form is Form.SUM:
        before: list[Space] = []
        after: list[Space] = []
        start = 0
        for kid in space.kids:
            kid = find(kid)
            if start + kid.n <= at:
                before.append(kid)
            elif start >= at:
                after.append(kid)
            else:
                head, tail = split(kid, at - start)
                before.append(head)
                after.append(tail)
            start += kid.n
        return sum_of(before), sum_of(after)
    return _split_product(space, at)


def _split_product(space: Space, at: int) -> tuple[Space, Space]:
    factors = _factors(space)
    first, rest = factors[0], prod(factors[1:])
    if len(factors) == 1:
        return split(first, at)
    rows, extra = divmod(at, rest.n)
    copies = first.form is Form.LEAF and first.refusal is None and not extra and 1 in (rows, first.n - rows)
    if copies and any(free_leaves(rest)):  # segments that are copies of one another: these stay, their units may go
        make_whole(first, _STRADDLE)
    if first.form is Form.LEAF and first.refusal is not None:  # a whole factor is as many copies of the rest
        why = first.refusal
        head = [prod([whole(rows, why), rest])] if rows else []
        tail = [prod([whole(first.n - rows - bool(extra), why), rest])] if first.n - rows - bool(extra) else []
        if extra:
            low, high = split(rest, extra)
            head, tail = [*head, low], [high, *tail]
        return sum_of(head), sum_of(tail)
    if not extra:
        one, other = split(first, rows)
        return prod([one, rest]), prod([other, rest])
    make_whole(rest, _STRADDLE)
    above: Space | None = None
    if rows:
        above, first = split(first, rows)
    below: Space | None = None
    if find(first).n > 1:
        first, below = split(first, 1)
    relate(part for part in (above, first, below) if part is not None)
    low, high = whole(extra, _STRADDLE), whole(rest.n - extra, _STRADDLE)
    heads = [prod([first, low])] if above is None else [prod([above, rest]), prod([first, low])]
    tails = [prod([first, high])] if below is None else [prod([first, high]), prod([below, rest])]
    return sum_of(heads), sum_of(tails)


def _factor(space: Space, outer: int) -> list[Space]:
    """Rewrite a factor of ``n`` as ``outer x (n / outer)``."""
    space = find(space)
    high, low = _piece(space, outer), _piece(space, space.n // outer)
    if space.form is Form.LEAF:
        if space.refusal is None:
            space.link = Space(Form.PROD, space.n, (high, low))
    else:
        unify(space, Space(Form.PROD, space.n, (high, low)))
    return [high, low]


def _unify_products(a: Space, b: Space) -> None:
    left, right = [a], [b]
    while True:
        x, y = _next(left, Form.PROD), _next(right, Form.PROD)
        if x is None or y is None:
            break
        if x.n == y.n:
            unify(x, y)
        elif x.n == 1 or y.n == 1:
            single, other = (x, y) if x.n == 1 else (y, x)
            make_whole(single, _MISALIGNED)
            (right if single is x else left).append(other)
        else:
            common = gcd(x.n, y.n)
            if common == 1:
                left.append(x)
                right.append(y)
                x = y = None
                break
            left.extend(reversed(_factor(x, common) if common < x.n else [x]))
            right.extend(reversed(_factor(y, common) if common < y.n else [y]))
    for rest in (x, y, *left, *right):
        if rest is not None:
            make_whole(rest, _MISALIGNED)
