"""The step curves of a network: from a table, from this device's cache, or measured when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.backends.base import get_backend
from graphprune.coupling.groups import Grouping, Keep
from graphprune.errors import NothingPrunableError, UsageError
from graphprune.ir.store import write_onnx
from graphprune.latency.curves import StepCurves, fit_curves
from graphprune.latency.layers import Layer, layers_of
from graphprune.latency.profile import ProfileOptions, profile_network
from graphprune.latency.table import LatencyTable, read_cached, write_cached
from graphprune.passes.allocate import Resource
from graphprune.passes.selection import Selection
from graphprune.passes.shrink import Shrink

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group
    from graphprune.pipeline import Network

__all__ = ["LatencyModel", "profile_table"]


@dataclass
class LatencyModel:
    """The step curves of a network on this device, made when they are first needed.

    Attributes:
        layers: of the network.
        curves: fitted to the table, or to what was measured here.
        table: the measurements.
        errors: relative errors of predictions in the profiling, each before the scenario was known.
        seconds: spent in profiling.
    """

    layers: tuple[Layer, ...]
    sizes: Mapping[str, float]
    curves: StepCurves
    table: LatencyTable
    errors: tuple[float, ...] = ()
    seconds: float = 0.0
    near: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        grouping: Grouping,
        groups: Sequence[Group],
        source: Path,
        write: Callable[[Keep, Path], None],
        feeds: Mapping[str, np.ndarray],
        options: ProfileOptions,
        *,
        table: LatencyTable | None = None,
        known: LatencyTable | None = None,
        cache: bool = True,
    ) -> LatencyModel:
        """Curves from ``table`` if one is given, from the cache of this device if it knows the layers, or measured.

        ``known`` is a table that what is measured is added to.

        Raises:
            UsageError: the table given does not know a layer of the network.
        """
        layers = layers_of(grouping)
        sizes = {one.id: float(one.size) for one in grouping.groups}
        errors: tuple[float, ...] = ()
        seconds = 0.0
        if table is not None:
            table.require(layers)
        else:
            table = read_cached(options) if cache else known
            if not cache or table is None or not table.covers(layers):
                units = {one.id: one.size for one in grouping.groups}
                found = profile_network(layers, groups, units, source, write, feeds, options)
                errors, seconds = found.errors, found.seconds
                known = table if table is not None else LatencyTable.empty(found.fingerprint)
                table = known.with_points(layers, found.points)
                if cache:
                    write_cached(table)
        near: dict[str, set[str]] = {}
        for layer in layers:
            for name in layer.groups:
                near.setdefault(name, set()).update(layer.groups)
        return cls(
            layers,
            sizes,
            fit_curves(layers, table.points),
            table,
            errors,
            seconds,
            {name: frozenset(others - {name}) for name, others in near.items()},
        )

    def share(self, counts: Mapping[str, float]) -> float:
        """Predicted time over the original's."""
        return float(self.curves.time({**self.sizes, **counts})) / self.original_ns

    def to_json(self) -> dict[str, Any]:
        """What a profile says of itself."""
        return {
            "original_ms": self.original_ns / 1e6,
            "layers": len(self.layers),
            "signatures": len({layer.signature for layer in self.layers}),
            "prediction_errors": list(self.errors),
            "grains": [asdict(one) for one in self.curves.grains if one.block > 1 or one.alignment > 1],
            "seconds": self.seconds,
            "fingerprint": dict(self.table.fingerprint),
        }

    @property
    def original_ns(self) -> float:
        """Predicted time of the original."""
        return float(self.curves.time(self.sizes))

    def resource(self, share: float) -> Resource:
        """The time as a limited quantity."""
        return Resource(
            "latency",
            share * self.original_ns,
            lambda counts: float(self.curves.time({**self.sizes, **counts})),
            lambda group, widths, counts: self.curves.sweep(group, widths, {**self.sizes, **counts}),
            self.near,
        )


def profile_table(
    network: Network,
    folder: Path,
    options: ProfileOptions,
    known: LatencyTable | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    stat: bool = False,
) -> LatencyModel:
    """Measure a network's step curves on this device, for ``graphprune profile``; added to a table that is known.

    Args:
        network: loaded.
        folder: for the source of a module.
        options: see :class:`graphprune.latency.profile.ProfileOptions`.
        known: a table of the same device and options.
        include, exclude, stat: which groups vary, see :class:`graphprune.passes.selection.Selection`.

    Raises:
        NothingPrunableError: no group may be cut, so no width varies.
        UsageError: the table is of another device or of other options.
    """
    chosen = Selection(include, exclude, stat)(network.grouping, network.program.parameter_names)
    if not chosen:
        raise NothingPrunableError("no group may be cut, so no width varies; `graphprune analyze` says why")
    source = network.source
    if source is None:
        source = folder / "source.onnx"
        write_onnx(network.program.model, source)
    if known is not None:
        fingerprint = get_backend(options.backend).fingerprint(options.backend_options.for_curves())
        if dict(known.fingerprint) != fingerprint:
            other = sorted(key for key in fingerprint if known.fingerprint.get(key) != fingerprint[key])
            raise UsageError(f"the table is of other conditions ({', '.join(other)} differ); write to a new file")

    def write(keep: Keep, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        write_onnx(Shrink(keep)(network.grouping), path)

    return LatencyModel.of(
        network.grouping, chosen, source, write, network.program.examples, options, known=known, cache=False
    )
