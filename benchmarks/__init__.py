"""Benchmarks: each prints, or writes as Markdown, a table of ``docs/benchmarks.md``."""
