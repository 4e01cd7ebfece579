"""The folder of an export: whose files are spared in it, and how the artefact's take their names, the manifest last."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from graphprune.errors import UsageError
from graphprune.ir.files import output_folder, staging_folder
from graphprune.report.files import REPORTS, check_reports, stale_plots

__all__ = ["INT8", "MANIFEST", "MODEL", "PLAN", "SOURCE", "ArtefactFolder"]

MODEL, PLAN, MANIFEST, SOURCE = "model.onnx", "plan.json", "manifest.json", "source.onnx"
INT8 = "model.int8.onnx"
_DATA = re.compile(rf"model(-\d{{5}}-of-\d{{5}})?\.onnx\.data|{re.escape(INT8)}", re.ASCII)
_NAMES = (MODEL, INT8, f"{MODEL}.data", SOURCE, f"{SOURCE}.data", PLAN, MANIFEST)


@dataclass(frozen=True)
class ArtefactFolder:
    """Where an export puts its files; it need not be there yet."""

    path: Path

    def check(self) -> None:
        """See that files can be made in it, and leave nothing behind.

        Raises:
            UsageError: it cannot be written, or holds something else under one of the names.
        """
        made = self._missing()
        output_folder(self.path)
        _remove_empty(made)
        check_reports(self.path)
        for name in (*_NAMES, *REPORTS):
            if (self.path / name).is_dir():
                raise UsageError(f"cannot write '{self.path / name}': it is a folder; choose another output folder")

    def spare(self, files: Sequence[Path]) -> None:
        """Raise UsageError where an artefact would take the place of one of these files."""
        for target in [*(self.path / name for name in _NAMES), *self.path.glob("model-*.onnx.data")]:
            for one in files:
                if target.exists() and one.exists() and os.path.samefile(target, one):
                    raise UsageError(f"'{target}' would overwrite the source; choose another output folder")

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A folder within it to prepare files in; folders that stay empty go when the block ends."""
        made = self._missing()
        try:
            with staging_folder(output_folder(self.path)) as staging:
                yield staging
        finally:
            _remove_empty(made)

    def place(self, staging: Path, names: Sequence[str]) -> None:
        """Give files their names, the manifest's last: where it is, everything is. An earlier artefact's others go."""
        earlier = _listed(self.path / MANIFEST) | stale_plots(self.path)
        for name in sorted(names, key=lambda one: one == MANIFEST):
            os.replace(staging / name, self.path / name)
        for name in earlier - set(names):
            with suppress(OSError):
                os.unlink(self.path / name)

    def _missing(self) -> list[Path]:
        """The folder and those above it that are not there yet, the innermost first."""
        return [one for one in (self.path, *self.path.parents) if not one.exists()]


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # somebody else has put something there
        for one in folders:
            one.rmdir()


def _listed(manifest: Path) -> set[str]:
    """Data files that an earlier export wrote beside its model, as its manifest says; other names are not believed."""
    try:
        names = set(json.loads(manifest.read_bytes())["artefact"]["sha256"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return {name for name in names if isinstance(name, str) and _DATA.fullmatch(name)}
