"""``python -m tests.laws.report``: every rule with its samples, cuts and mutants, as a table."""

from __future__ import annotations

from collections import Counter

from graphprune.coupling.laws import check
from graphprune.coupling.registry import all_rules

from .bench import run, shrink
from .mutations import sweep
from .samples import samples

_VERDICTS = ("caught", "refused", "equivalent", "conservative", "survived")


def main() -> None:
    """Print the table and its totals."""
    every = samples()
    columns = ("samples", "refusals", "claims", "cuts", "broken", "missing", "mutants", *_VERDICTS)
    total: Counter[str] = Counter()
    print("| operator | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for domain, op in sorted(key for key, one in all_rules().items() if one.reason is None):
        count: Counter[str] = Counter()
        chosen = [one for one in every if (one.domain, one.op) == (domain, op)]
        for sample in chosen:
            found = check(sample, run, shrink)
            count.update(samples=1, refusals=bool(found.refusal), claims=found.claims, cuts=found.cuts)
            count.update(broken=len(found.failures), missing=len(found.missing))
        for finding in sweep(chosen):
            count.update(["mutants", finding.verdict])
        total += count
        print(f"| {domain and domain + '.'}{op} | " + " | ".join(str(count[name]) for name in columns) + " |")
    print("| all | " + " | ".join(str(total[name]) for name in columns) + " |")
    barriers = sum(one.reason is not None for one in all_rules().values())
    print(f"\n{len(all_rules()) - barriers} rules, {barriers} barriers.")


if __name__ == "__main__":
    main()
