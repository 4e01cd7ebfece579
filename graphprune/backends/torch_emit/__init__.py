"""From a program to a ``torch.fx.GraphModule``: an emitter per operator, most of them one line of a table.

The ladder: a table line (``lines``) names the PyTorch function; where attributes or shapes decide, a short function of
the node's :class:`~graphprune.backends.torch_emit.view.View` emits the calls (``emits``); where PyTorch has no function
of that meaning, it calls one of :mod:`graphprune.backends.torch_ops`; else it refuses with a reason. Size arithmetic is
emitted as Python integers (``sizes``). Imported only where torch is at hand.
"""
