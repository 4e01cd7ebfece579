"""The border to onnx-graphsurgeon: its graphs are accepted and handed out (NVIDIA's tools speak them)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from graphprune.errors import InputError, UsageError
from graphprune.frontends.onnx import read_message, read_onnx

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["is_graph", "read_graphsurgeon", "to_graphsurgeon"]


def is_graph(source: Any) -> bool:
    """Whether something is a ``onnx_graphsurgeon.Graph`` (decided without importing the package)."""
    return type(source).__module__.partition(".")[0] == "onnx_graphsurgeon" and type(source).__name__ == "Graph"


def read_graphsurgeon(graph: Any) -> ir.Model:
    """A model of a graphsurgeon graph, held to the same checks as a file.

    Raises:
        InputError: graphsurgeon cannot export it, or the result is not a sound model.
    """
    try:
        import onnx_graphsurgeon
    except ImportError as error:
        raise UsageError("this needs onnx-graphsurgeon: pip install onnx-graphsurgeon") from error
    try:
        message = onnx_graphsurgeon.export_onnx(graph, do_type_check=False)
    except Exception as error:  # it raises whatever its own code meets
        raise InputError(f"onnx-graphsurgeon cannot export the graph {graph.name!r}: {error}") from error
    return read_message(message)


def to_graphsurgeon(path: str | os.PathLike[str]) -> Any:
    """An ONNX file, such as an artefact, as a ``onnx_graphsurgeon.Graph``.

    The graph has neither the file's metadata nor its quantisation annotations: graphsurgeon has no place for them.

    Raises:
        InputError: the file is not a sound model. UsageError: the package is not installed.
    """
    try:
        import onnx
        import onnx_graphsurgeon
    except ImportError as error:
        raise UsageError("this needs onnx-graphsurgeon: pip install onnx-graphsurgeon") from error
    read_onnx(path)  # refuses what is not sound in plain words
    return onnx_graphsurgeon.import_onnx(onnx.load(os.fspath(path)))
