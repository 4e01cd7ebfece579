"""Measured latency: ``measure`` times a network or compares two, ``statistics`` says what the samples mean."""
