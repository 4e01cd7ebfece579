"""Training what is pruned: groups on a module's parameters, sparse optimisers, recovery, cuts of the user's own module.

Everything here needs PyTorch; nothing outside imports it before it is used.
"""
