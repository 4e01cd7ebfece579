"""Saved plans: a stable format that can be checked against the source file without graphprune (``docs/plan.md``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.coupling.groups import Grouping, Keep
from graphprune.errors import InputError
from graphprune.passes.plan import Plan, PlanMember

__all__ = ["FORMAT", "keep_of", "members_of", "plan_document", "read_plan", "replay", "saved_members", "write_plan"]

FORMAT = 1


def keep_of(plan: Plan, grouping: Grouping) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Masks of kept units, shape ``(group.size,)``, for the groups that a plan cuts."""
    sizes = {one.id: one.size for one in grouping.groups}
    keep = {}
    for name, kept in plan.kept.items():
        mask = np.zeros(sizes[name], dtype=np.bool_)
        mask[kept] = True
        keep[name] = mask
    return keep


def members_of(grouping: Grouping, keep: Keep) -> list[PlanMember]:
    """What a plan removes from every tensor, group by group."""
    members: list[PlanMember] = []
    for one in grouping.groups:
        chosen = keep.get(one.id)
        if chosen is None or chosen.all():
            continue
        gone = np.append(~chosen, False)  # unit -1 (none) is never removed
        for member in one.members:
            removed = np.flatnonzero(gone[member.unit_of])
            members.append(
                PlanMember(one.id, member.tensor, member.axis, member.size, member.rank, member.role, removed)
            )
    return members


def plan_document(plan: Plan, grouping: Grouping, source_sha256: str) -> dict[str, Any]:
    """The saved form of a plan: the groups that lose units, with what goes from every tensor of the source."""
    keep = keep_of(plan, grouping)
    members: dict[str, list[dict[str, Any]]] = {}
    for member in members_of(grouping, keep):
        members.setdefault(member.group, []).append(
            {
                "tensor": member.tensor,
                "axis": member.axis,
                "size": member.size,
                "rank": member.rank,
                "role": member.role,
                "removed": member.removed.tolist(),
            }
        )
    groups = [
        {
            "id": one.id,
            "kind": one.kind,
            "size": one.size,
            "kept": np.flatnonzero(keep[one.id]).tolist(),
            "exact": one.exact,
            "members": members[one.id],
        }
        for one in grouping.groups
        if one.id in members
    ]
    return {"format": FORMAT, "source_sha256": source_sha256, "groups": groups}


def write_plan(document: Mapping[str, Any]) -> bytes:
    """One line per member, so that two plans can be compared with diff."""
    lines = ["{", f'  "format": {document["format"]},', f'  "source_sha256": "{document["source_sha256"]}",']
    groups = []
    for one in document["groups"]:
        head = {key: value for key, value in one.items() if key != "members"}
        rows = ",\n".join(f"      {json.dumps(member)}" for member in one["members"])
        groups.append(f'    {json.dumps(head)[:-1]}, "members": [\n{rows}\n    ]}}')
    body = ",\n".join(groups)
    lines.append(f'  "groups": [\n{body}\n  ]' if groups else '  "groups": []')
    return ("\n".join([*lines, "}"]) + "\n").encode()


def read_plan(path: str | Path) -> dict[str, Any]:
    """Read a saved plan.

    Raises:
        InputError: not a plan, or of a format that this version does not know.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        known = document["format"]
        for one in document["groups"]:
            str(one["id"]), int(one["size"]), list(one["kept"])
            for member in one["members"]:
                str(member["tensor"]), int(member["axis"]), int(member["size"]), int(member["rank"])
                str(member["role"]), list(member["removed"])
    except OSError as error:
        raise InputError(f"cannot read the plan '{path}': {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is not a plan that graphprune wrote ({type(error).__name__}: {error})") from error
    if known != FORMAT:
        raise InputError(f"'{path}' is a plan of format {known}; this version reads format {FORMAT}")
    assert isinstance(document, dict)
    return document


def saved_members(document: Mapping[str, Any]) -> list[PlanMember]:
    """The members of a saved plan.

    Raises:
        InputError: a removed index lies outside its axis.
    """
    members = []
    for one in document["groups"]:
        for raw in one["members"]:
            removed = np.asarray(raw["removed"], dtype=np.int64)
            if removed.size and not (removed.min() >= 0 and removed.max() < raw["size"]):
                raise InputError(f"the plan removes indices outside axis {raw['axis']} of {raw['tensor']!r}")
            members.append(
                PlanMember(one["id"], raw["tensor"], raw["axis"], raw["size"], raw["rank"], raw["role"], removed)
            )
    return members


def replay(document: Mapping[str, Any], grouping: Grouping) -> Plan:
    """The saved choice of units for the same architecture, whatever its weights.

    Raises:
        InputError: a group is missing or stands on other tensors.
    """
    kept: dict[str, Any] = {}
    groups = {one.id: one for one in grouping.groups}
    for raw in document["groups"]:
        name = raw["id"]
        one = groups.get(name)
        if one is None:
            raise InputError(
                f"the plan cuts the group {name}, which this network does not have; was it made for another?"
            )
        if one.size != raw["size"]:
            raise InputError(f"the plan's group {name} has {raw['size']} units, this network's has {one.size}")
        ours = {(m.tensor, m.axis, m.size) for m in one.members}
        theirs = {(m["tensor"], m["axis"], m["size"]) for m in raw["members"]}
        if ours != theirs:
            tensor, axis, size = min(ours ^ theirs)
            raise InputError(
                f"the plan's group {name} does not stand on the same tensors: {tensor!r} axis {axis} ({size})"
            )
        units = np.unique(np.asarray(raw["kept"], dtype=np.int64))
        if not units.size or units[0] < 0 or units[-1] >= one.size:
            raise InputError(f"the plan keeps units of group {name} that do not exist (it has {one.size})")
        kept[name] = units
    return Plan(kept)
