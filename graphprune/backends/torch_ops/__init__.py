"""What generated modules call where PyTorch has no function of ONNX's meaning: small functions of tensors.

The code of a :func:`graphprune.to_torch` module names them in full, so that it can be read, pickled and exported.
"""
