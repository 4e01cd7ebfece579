"""Loop and Scan of the float64 reference.

``onnx``'s own evaluator joins what a Loop stacks along an axis that is there already, takes a condition that is left
out for false, and knows no axes or directions of a Scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["loop_operators"]

Array = NDArray[Any]


def loop_operators() -> list[type[Any]]:
    """Classes for the evaluator's ``new_ops``; a class's name is the operator's."""
    from onnx.reference.op_run import OpRun

    class Loop(OpRun):
        def need_context(self) -> bool:
            return True

        def _run(
            self, trips: Array | None, going: Array | None, *carried: Array, context: Mapping[str, Array], **rest: Any
        ) -> tuple[Array, ...]:
            body = self.body  # type: ignore[attr-defined]
            state = list(carried)
            stacked: list[list[Array]] = [[] for _ in body.output_names[1 + len(carried) :]]
            i = 0
            while (going is None or np.all(going)) and (trips is None or i < int(np.max(trips))):
                given = [np.array(i, dtype=np.int64), np.array(True), *state]
                going, *made = _outputs(self, body, context, given, rest)
                state = made[: len(state)]
                for parts, array in zip(stacked, made[len(state) :], strict=True):
                    parts.append(array)
                i += 1
            return (*state, *(np.stack(parts) if parts else np.empty((0,)) for parts in stacked))

    class Scan(OpRun):
        def need_context(self) -> bool:
            return True

        def _run(self, *operands: Array, context: Mapping[str, Array], **rest: Any) -> tuple[Array, ...]:
            body = self.body  # type: ignore[attr-defined]
            scanned = int(self.num_scan_inputs)  # type: ignore[attr-defined]
            states = len(operands) - scanned
            state, slices = list(operands[:states]), operands[states:]
            results = len(body.output_names) - states

            def of(name: str, count: int) -> list[int]:
                return [int(n) for n in getattr(self, name, None) or [0] * count]

            ins = zip(slices, of("scan_input_axes", scanned), of("scan_input_directions", scanned), strict=True)
            moved = [np.moveaxis(array, axis, 0)[:: -1 if back else 1] for array, axis, back in ins]
            stacked: list[list[Array]] = [[] for _ in range(results)]
            for i in range(len(moved[0])):
                made = _outputs(self, body, context, [*state, *(array[i] for array in moved)], rest)
                state = made[:states]
                for parts, array in zip(stacked, made[states:], strict=True):
                    parts.append(array)
            outs = zip(stacked, of("scan_output_axes", results), of("scan_output_directions", results), strict=True)
            return (*state, *(np.stack(parts[:: -1 if back else 1], axis=axis) for parts, axis, back in outs))

    return [Loop, Scan]


def _outputs(node: Any, body: Any, context: Mapping[str, Array], given: list[Array], rest: Any) -> list[Array]:
    """One iteration: the body's outputs for its inputs, given in their order."""
    feeds = {**context, **dict(zip(body.input_names, given, strict=True))}
    return list(node._run_body(feeds, attributes=rest.get("attributes"), bindings=rest.get("bindings")))
