"""Passes over a coupled program: score, allocate, shrink, repair, verify."""
