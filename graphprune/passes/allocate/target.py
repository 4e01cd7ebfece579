"""What is asked for: an upper bound on parameters or multiply-accumulates."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from graphprune.errors import UsageError

Quantity = Literal["params", "macs"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
WORDS: dict[Quantity, str] = {"params": "parameters", "macs": "MACs"}

SPELLINGS = "write a fraction of the original as 0.5x, or a number as 3500000, 800k, 12.5M or 1.2G"
_NUMBER = re.compile(r"([+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:e[+-]?\d{1,2})?)\s*([xkmgt]?)", re.ASCII)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Target:
    """An upper bound on ``quantity``: ``value`` times the original if ``relative``, else ``value`` itself.

    Units: elements of parameters, or multiply-accumulates of one run on the example inputs.
    """

    quantity: Quantity
    value: float
    relative: bool = True

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise UsageError(f"A target is on {' or '.join(QUANTITIES)}, not on '{self.quantity}'.")
        said = f"{self.value}x" if self.relative else str(self.value)
        _check(self.quantity, said, self.value, self.relative)

    @classmethod
    def parse(cls, text: str, quantity: Quantity) -> Target:
        """Read ``0.5x``, ``12.5M``, ``3500000`` or ``1.2G``; raises ``UsageError`` that names these spellings."""
        found = _NUMBER.fullmatch(text.strip().lower())
        if found is None:
            raise UsageError(f"The target '{text}' for {quantity} is not a number; {SPELLINGS}.")
        number, unit = Decimal(found[1]), found[2]
        if unit == "x":
            _check(quantity, text, float(number), relative=True)
            return cls(quantity, float(number))
        value = number * _UNITS[unit]
        _check(quantity, text, float(value), relative=False)
        return cls(quantity, int(value), relative=False)

    def limit(self, original: int) -> int:
        """The largest allowed amount for a network of ``original``; raises ``UsageError`` if that is above it."""
        if self.relative:
            # In decimal, as it was written: 0.29 of 100 is 29, where binary floats give 28.999999999999996.
            return math.floor(Decimal(repr(float(self.value))) * original)
        if self.value > original:
            raise UsageError(
                f"The target of {int(self.value):,} {WORDS[self.quantity]} is above 1x: the network has only "
                f"{original:,}; pruning makes a network smaller, so ask for less."
            )
        return int(self.value)

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.relative else f"{int(self.value):,}"


def _check(quantity: Quantity, said: str, number: float, relative: bool) -> None:
    """Raise ``UsageError`` unless the value can be a target; ``said`` is how the user wrote it."""
    start = f"The target '{said}' for {quantity}"
    if not math.isfinite(number):
        raise UsageError(f"{start} is not a number; {SPELLINGS}.")
    if number == 0:
        raise UsageError(f"{start} is 0: nothing would be left; {SPELLINGS}.")
    if number < 0:
        raise UsageError(f"{start} is negative; {SPELLINGS}.")
    if relative and number > 1:
        raise UsageError(f"{start} is above 1x, the original itself; {SPELLINGS}.")
    if not relative and number != int(number):
        hint = f" (did you mean {said.strip()}x?)" if number < 1 else ""
        raise UsageError(f"{start} is not a whole number of {WORDS[quantity]}{hint}; {SPELLINGS}.")
