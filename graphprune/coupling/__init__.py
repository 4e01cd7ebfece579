"""Coupling: which indices of which tensors can only go together."""
