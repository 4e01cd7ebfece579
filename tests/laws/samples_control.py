"""Samples of If, Loop and Scan; a body holds its own constants, since a sample is one operator alone."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.coupling.laws import Operand, Sample
from graphprune.coupling.sample import Body

from .make import one, scalar, x

_W = "<float[5] w = {0.5, -1.5, 2.0, -0.25, 1.25}>"
_COUNT = scalar(3, "int64")


def samples() -> Iterator[Sample]:
    """All of them."""
    held = Body(f"then () => (float[5] t) {_W} {{ t = Neg(w) }}")
    given = Body("else () => (float[5] e) { e = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]>() }")
    for taken in (True, False):
        yield one("If", Operand((), dtype="bool", content=(taken,)), then_branch=held, else_branch=given)
    flat = Body("else () => (float e) { e = Constant<value_float=1.0>() }")
    yield one("If", x(kind="bool"), then_branch=held, else_branch=flat, refused="result 0 is given with 0 and 1 axes")
    two = Body(f"then () => (float[5] t, float[5] s) {_W} {{ t = Neg(w) s = Abs(w) }}")
    other = Body(
        f"else () => (float[5] e, float[4] d) {_W.replace('w', 'v')} "
        "{ e = Abs(v) d = Constant<value_floats=[1.0, 2.0, 3.0, 4.0]>() }"
    )
    yield one("If", x(kind="bool"), then_branch=two, else_branch=other, results=2)
    carries = Body(
        f"body (int64 i, bool c, float[3,5] h) => (bool k, float[3,5] o, float[3,5] s) {_W} "
        "{ k = Identity(c) o = Mul(h, w) s = Tanh(o) }"
    )
    yield one("Loop", _COUNT, None, x(3, 5), body=carries, results=2)
    grows = Body(
        "body (int64 i, bool c, float[N,5] h) => (bool k, float[M,5] o) { k = Identity(c) o = Concat<axis=0>(h, h) }"
    )
    yield one("Loop", _COUNT, None, x(3, 5), body=grows)
    cell = Body("body (float[5] h, float[5] e) => (float[5] n, float[5] s) { a = Mul(h, e) n = Add(a, e) s = Tanh(n) }")
    yield one("Scan", x(5), x(7, 5), body=cell, num_scan_inputs=1, results=2)
    for axis in (1, -1):
        yield one(
            "Scan",
            x(5),
            x(5, 7),
            body=cell,
            num_scan_inputs=1,
            scan_input_axes=(axis,),
            scan_output_axes=(axis,),
            scan_input_directions=(1,),
            scan_output_directions=(1,),
            results=2,
        )
