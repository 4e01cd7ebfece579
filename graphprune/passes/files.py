"""Saved plans: a stable format that can be checked against the source file without graphprune (``docs/plan.md``)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from graphprune.coupling.groups import Grouping, Keep, Role
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


def read_plan(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a saved plan; everything that the format promises of it holds afterwards.

    Raises:
        InputError: not a plan, or of a format that this version does not know.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the plan '{path}': {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"'{path}' is not a plan that graphprune wrote: it is not JSON ({why})") from error
    if isinstance(document, dict) and "format" in document and document["format"] != FORMAT:
        raise InputError(f"'{path}' is a plan of format {document['format']}; this version reads format {FORMAT}")
    wrong = _what_is_wrong(document)
    if wrong is not None:
        raise InputError(f"'{path}' is not a plan that graphprune wrote: {wrong} (docs/plan.md describes the format)")
    assert isinstance(document, dict)
    return document


_PLAN = {"format": int, "source_sha256": str, "groups": list}
_GROUP = {"id": str, "kind": str, "size": int, "kept": list, "exact": bool, "members": list}
_MEMBER = {"tensor": str, "axis": int, "size": int, "rank": int, "role": str, "removed": list}


def _what_is_wrong(document: Any) -> str | None:
    """The first thing in which a document differs from the format, or ``None``."""
    wrong = _fields(document, _PLAN, "it")
    if wrong is not None:
        return wrong
    seen: set[str] = set()
    for i, one in enumerate(document["groups"]):
        where = f"group {i}"
        wrong = _fields(one, _GROUP, where)
        if wrong is not None:
            return wrong
        if one["id"] in seen:
            return f"two groups are called {one['id']!r}"
        seen.add(one["id"])
        where = f"the group {one['id']!r}"
        if not one["kept"] or not _indices(one["kept"], one["size"]):
            return f"{where} of {one['size']} units needs a list of units 0 to {one['size'] - 1} as 'kept'"
        for member in one["members"]:
            wrong = _fields(member, _MEMBER, f"a member of {where}")
            if wrong is not None:
                return wrong
            name = f"{member['tensor']!r} in {where}"
            if not 0 <= member["axis"] < member["rank"]:
                return f"{name} has no axis {member['axis']}, it has {member['rank']}"
            if not _indices(member["removed"], member["size"]):
                return (
                    f"'removed' of {name} needs indices 0 to {member['size'] - 1}, the indices of axis {member['axis']}"
                )
            if member["role"] not in get_args(Role):
                return f"{name} has the role {member['role']!r}, not one of {', '.join(get_args(Role))}"
    return None


def _fields(given: Any, fields: Mapping[str, type], where: str) -> str | None:
    if not isinstance(given, dict):
        return f"{where} is not an object"
    for key, kind in fields.items():
        if key not in given:
            return f"{where} has no {key!r}"
        if not isinstance(given[key], kind) or (kind is int and isinstance(given[key], bool)):
            return f"{key!r} of {where} is not of the type {kind.__name__}"
    return None


def _indices(values: Sequence[Any], size: int) -> bool:
    return all(type(value) is int and 0 <= value < size for value in values)


def saved_members(document: Mapping[str, Any]) -> list[PlanMember]:
    """The members of a saved plan."""
    return [
        PlanMember(
            one["id"],
            member["tensor"],
            member["axis"],
            member["size"],
            member["rank"],
            member["role"],
            np.asarray(member["removed"], dtype=np.int64),
        )
        for one in document["groups"]
        for member in one["members"]
    ]


def replay(document: Mapping[str, Any], grouping: Grouping) -> Plan:
    """The saved choice of units for the same architecture, whatever its weights.

    Raises:
        InputError: a group is missing, stands on other tensors, or means other indices of them.
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
            raise InputError(
                f"the plan's group {name} has {raw['size']} units, this network's has {one.size}; "
                "was it made for another?"
            )
        ours = {(m.tensor, m.axis, m.size) for m in one.members}
        theirs = {(m["tensor"], m["axis"], m["size"]) for m in raw["members"]}
        if ours != theirs:
            tensor, axis, size = min(ours ^ theirs)
            raise InputError(
                f"the plan's group {name} does not stand on the same tensors: {tensor!r} axis {axis} ({size})"
            )
        kept[name] = np.unique(np.asarray(raw["kept"], dtype=np.int64))
    plan = Plan(kept)
    if emptied := grouping.emptied(keep_of(plan, grouping)):
        tensor, axis = emptied[0]
        raise InputError(f"the plan leaves nothing of {tensor!r} axis {axis}; every axis has to keep an index")
    removed = {
        (member.group, member.tensor, member.axis): member.removed
        for member in members_of(grouping, keep_of(plan, grouping))
    }
    for member in saved_members(document):
        gone = removed.get((member.group, member.tensor, member.axis), np.zeros(0, dtype=np.int64))
        if not np.array_equal(gone, np.sort(member.removed)):
            raise InputError(
                f"the plan contradicts itself: 'kept' of the group {member.group} and 'removed' of {member.tensor!r} "
                f"axis {member.axis} do not name the same units of this network"
            )
    return plan
