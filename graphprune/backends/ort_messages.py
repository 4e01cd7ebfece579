"""ONNX Runtime's error texts as one plain sentence."""

from __future__ import annotations

import re

__all__ = ["load_message", "plain"]

_OPSET = re.compile(r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", re.DOTALL)
_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_SOURCE = re.compile(r"\S*\.(?:h|hpp|cc|cpp|cxx|cu|cuh):\d+:? ")


def load_message(label: str, text: str, version: str) -> str:
    """Why a model cannot be loaded, and what to do about it."""
    if found := _OPSET.search(text):
        opset, domain, limit = found.groups()
        return (
            f"{label}: it uses opset {opset} of {domain}, which onnxruntime {version} does not accept (up to {limit}); "
            f"export it with opset {limit} or lower, or install a newer onnxruntime."
        )
    if found := _IR.search(text):
        have, limit = found.groups()
        return (
            f"{label}: it has IR version {have}, which onnxruntime {version} does not accept (up to {limit}); "
            f"save it with IR version {limit} or lower, or install a newer onnxruntime."
        )
    if "INVALID_PROTOBUF" in text or "No graph was found" in text:
        return f"{label}: this is not a whole ONNX file (it is truncated, or something else); fetch or export it again."
    return f"{label}: onnxruntime {version} cannot load it: {plain(text)}"


def plain(text: str) -> str:
    """The runtime's message on one line, without its error code and the C++ file, line and signature it came from."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    parts = _SOURCE.split(text)
    kept = [parts[0], *(_drop_signature(part) for part in parts[1:])]
    text = " ".join(" ".join(kept).split())
    if len(text) > 600:
        text = f"{text[:600]} ..."
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _drop_signature(text: str) -> str:
    """Cuts ``ret ns::Class::method(args) const [with T = x]``, or a lone function name, off the beginning."""
    start = text.find("(")
    if start < 0 or "::" not in text[:start]:
        return re.sub(r"^[A-Za-z_]\w* (?=\S)", "", text)
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return re.sub(r"^\s*(?:const)?\s*(?:\[with [^\]]*\])?\s*", "", text[position + 1 :])
    return text
