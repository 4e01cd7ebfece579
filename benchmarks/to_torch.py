"""Every network of the zoo as a ``torch.fx.GraphModule``, held to ONNX Runtime's outputs; do gradients arrive?

    python -m benchmarks.to_torch                          # every network without a row yet, then the table
    python -m benchmarks.to_torch --networks resnet18,unet # these again
    python -m benchmarks.to_torch --suites timm,qdq        # these suites' networks again
    python -m benchmarks.to_torch --table                  # the table alone

Needs graphprune[zoo] for all rows; a network whose packages are missing is a row that says so. Nothing is downloaded
and nothing is trained: all weights but those of the files of packages are random (seed 0).

Every network runs in a process of its own, which is ended after 600 s or at 8 GB: it is loaded and observed, made a
module, and run on fresh random inputs of the examples' sizes and, where dimensions are symbolic, of the other sizes
observed. The error is the largest difference to ONNX Runtime over the output's largest magnitude. Where float32 (or
fewer bits) differ by more than 1e-4, the module in float64 is held to the reference implementation in float64, and that
decides. Where this differs as well, ONNX Runtime is held to itself, with constants moved in their last place: what
differs by no more than twice that is ``unstable`` (values rounded to eight bits between operators), the rest ``not
equal``. Then the sum of the outputs, randomly weighted, is differentiated in eval mode.

Rows are lines of JSON in ``docs/to-torch.jsonl``, one per network, replaced when a network is run again: a sweep that
was interrupted goes on where it stopped. The table is ``docs/to-torch.md``.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import Row, Sweep, load_network, markdown_table, suites

if TYPE_CHECKING:
    from torch import fx

    from graphprune.ir.program import Array, Program

RTOL = 1e-4
DRAWS = 5  # of constants moved by rounding


def examine(name: str, tell: Callable[[Row], None]) -> None:
    """One network, in this process: ``tell`` is given more figures after every stage.

    ``status`` is ``equal``, or what went wrong: ``not made`` (the zoo's or a tool's fault), ``refused``, ``unstable``,
    ``not equal``, ``failed``; ``reason`` says more.
    """
    from graphprune import to_torch
    from graphprune.errors import UnsupportedError
    from graphprune.ir.observe import random_feeds

    start = time.perf_counter()
    try:
        network = load_network(name)
    except Exception as error:  # tools that make variants raise what they like: the row says it
        tell({"status": "not made", "reason": f"{type(error).__name__}: {error}"})
        return
    program = network.program
    seconds = {"load": time.perf_counter() - start}
    tell({"reason": "crashed while it became a module", "seconds": seconds})
    start = time.perf_counter()
    try:
        module = to_torch(network)
    except UnsupportedError as error:
        tell({"status": "refused", "reason": str(error), "refusals": [list(one) for one in error.refusals]})
        return
    seconds["to_torch"] = time.perf_counter() - start
    weights = sum(one.numel() for one in module.parameters())
    calls = sum(node.op.startswith("call") for node in module.graph.nodes)
    tell({"parameters": weights, "calls": calls, "reason": "crashed while it ran", "seconds": seconds})
    feeds = [random_feeds(program, 1), *program.other_examples[:1]]
    worst, where = _difference(program, module, feeds)
    tell({"max_rel": worst, "sizes": len(feeds), "reason": "crashed while it was differentiated"})
    start = time.perf_counter()
    tell({**_gradients(module, feeds[0]), "reason": "crashed in float64"})
    seconds["backward"] = time.perf_counter() - start
    exact = None
    if not worst <= RTOL:
        exact = _in_float64(program, module, feeds[0], tell)
    if worst <= RTOL or (exact is not None and exact <= RTOL):
        tell({"status": "equal", "reason": ""})
        return
    moves = _sensitivity(program, feeds)
    reason = f"differs by {worst:.1e} in {where!r}"
    if worst <= 2 * moves:  # the largest of a few draws is not the largest of all
        tell({"status": "unstable", "reason": f"{reason}; ONNX Runtime's own outputs move by {moves:.1e}"})
    else:
        tell({"status": "not equal", "reason": reason})
    tell({"sensitivity": moves})


def _difference(program: Program, module: fx.GraphModule, given: Sequence[Mapping[str, Array]]) -> tuple[float, str]:
    """Largest difference to ONNX Runtime over an output's largest magnitude, and the output where it is."""
    import torch

    assert program.run is not None
    worst, where = 0.0, ""
    for feeds in given:
        wanted = program.run(program.model, feeds)
        with torch.no_grad():
            made = _outputs(module, feeds)
        for name in made:
            found = _relative(made[name], wanted[name])
            if not found <= worst:
                worst, where = found, name
    return worst, where


def _sensitivity(program: Program, given: Sequence[Mapping[str, Array]]) -> float:
    """How far ONNX Runtime's outputs move when constants but whole numbers move in the last place, up or down.

    The largest of a few draws, NaN if one made NaN. A value that is rounded to eight bits jumps by a whole step where
    it lay between two.
    """
    import numpy as np
    import onnx
    import onnx_ir as ir
    import torch
    from onnx import numpy_helper

    assert program.run is not None
    wanted = [program.run(program.model, feeds) for feeds in given]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        proto = ir.to_proto(program.model)
        inner = (one.t for node in proto.graph.node for one in node.attribute if one.type == onnx.AttributeProto.TENSOR)
        for tensor in (*proto.graph.initializer, *inner):
            value = numpy_helper.to_array(tensor)
            if value.dtype.kind == "f":
                towards = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
                # An exponent of 2 has to stay one, and so has the limit of a Clip.
                moved = np.where(value == np.round(value), value, np.nextafter(value, towards))
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
        model = ir.from_proto(proto)
        for feeds, held in zip(given, wanted, strict=True):
            made = program.run(model, feeds)
            found += [_relative(torch.tensor(made[name]), held[name]) for name in held]
    return float(np.max(found))


def _outputs(module: fx.GraphModule, feeds: Mapping[str, Array]) -> dict[str, Any]:
    import torch

    made = module(*(torch.tensor(feeds[name]) for name in module.meta["inputs"]))
    return dict(zip(module.meta["outputs"], made if isinstance(made, tuple) else (made,), strict=True))


def _relative(made: Any, wanted: Array) -> float:
    import numpy as np

    if tuple(made.shape) != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    one, two = made.detach().double().numpy(), wanted.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    return float(np.where(same, 0.0, np.abs(one - two)).max() / (np.abs(two[np.isfinite(two)]).max(initial=0) + 1e-12))


def _gradients(module: fx.GraphModule, feeds: Mapping[str, Array]) -> Row:
    """How many parameters there are, get a finite gradient, and one that is not zero throughout."""
    import torch

    torch.manual_seed(0)
    outputs = [one for one in _outputs(module, feeds).values() if one.requires_grad]
    named = dict(module.named_parameters())
    if outputs:
        sum((one * torch.randn_like(one)).sum() for one in outputs).backward()
    grads = {name: one.grad for name, one in named.items() if one.grad is not None}
    finite = [name for name, grad in grads.items() if bool(torch.isfinite(grad).all())]
    moved = [name for name in finite if bool(grads[name].any())]
    module.zero_grad()
    still = [name for name in named if name not in moved]
    return {"tensors": len(named), "finite": len(finite), "moved": len(moved), "still": still[:4]}


def _in_float64(
    program: Program, module: fx.GraphModule, feeds: Mapping[str, Array], tell: Callable[[Row], None]
) -> float | None:
    """The difference of the module in float64 to the reference implementation in float64."""
    import numpy as np
    import torch

    from graphprune.backends.reference import run_float64
    from graphprune.errors import GraphpruneError

    wide = {name: one.astype(np.float64) if one.dtype.kind == "f" else one for name, one in feeds.items()}
    try:
        wanted = run_float64(program.model, feeds)
        with torch.no_grad():
            made = _outputs(module.double(), wide)
    except (GraphpruneError, RuntimeError) as error:
        tell({"no_float64": " ".join(str(error).split())[:300]})
        return None
    worst = max(_relative(made[name], wanted[name]) for name in made)
    tell({"max_rel_float64": worst})
    return worst


def document(rows: Sequence[Row]) -> str:
    """The page."""
    tried = [row for row in rows if row["status"] not in ("missing", "not made")]
    count = Counter(row["status"] for row in tried)
    known = [row for row in tried if row["status"] == "equal"]
    complete = [row for row in known if row["finite"] == row["tensors"]]
    numb = [row["network"] for row in known if row["tensors"] and not row["moved"]]
    saturated = f" Nothing moves the outputs of {', '.join(numb)}: they are saturated." if numb else ""
    parts = [
        "# Networks as PyTorch modules",
        "`graphprune.to_torch` makes a trainable `torch.fx.GraphModule` of every network of the zoo that it does not "
        "refuse. `python -m benchmarks.to_torch` makes the rows that are missing and this page; the figures in full, "
        "with machine and versions of every row, are in [to-torch.jsonl](to-torch.jsonl).",
        f"{len(tried)} networks: {count['equal']} equal, {count['unstable']} unstable, {count['not equal']} not equal, "
        f"{count['refused']} refused, {count['failed']} failed. In {len(complete)} of the {len(known)} equal ones "
        f"every parameter gets a finite gradient.{saturated}",
        "*error*: largest difference to ONNX Runtime over the output's largest magnitude, on random inputs (and on the "
        "second sizes, where dimensions are symbolic); *float64*: where that is above 1e-4, the module in float64 "
        "against the reference implementation in float64, which decides; *unstable*: at most twice as far from ONNX "
        "Runtime as that is from itself when constants but whole numbers move in their last place. *gradients*: "
        "parameters with a finite gradient / parameters, in tensors (integers are no parameters). *calls*: of the "
        "generated code.",
    ]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        chosen = [row for row in rows if row["suite"] == suite]
        table = [
            (
                row["network"],
                row["status"],
                f"{row['max_rel']:.1e}" if "max_rel" in row else "",
                f"{row['max_rel_float64']:.1e}" if "max_rel_float64" in row else "",
                f"{row['parameters']:,}" if "parameters" in row else "",
                f"{row['finite']} / {row['tensors']}" if "tensors" in row else "",
                f"{row['calls']}" if "calls" in row else "",
            )
            for row in chosen
        ]
        columns = ("network", "status", "error", "float64", "parameters", "gradients", "calls")
        parts += [f"## {suite}", markdown_table(columns, table)]
    if missing := [row for row in rows if row["status"] != "equal"]:
        table = [(row["network"], row["status"], row["reason"]) for row in missing]
        parts += ["## Not equal, or not made", markdown_table(("network", "what", "why"), table)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


SWEEP = Sweep(
    "benchmarks.to_torch",
    "Every network of the zoo as a torch.fx.GraphModule.",
    suites(),
    examine,
    document,
    "to-torch",
)

if __name__ == "__main__":
    sys.exit(SWEEP.main())
