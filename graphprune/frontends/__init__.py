"""Ways in: what a user has (an ONNX file, a PyTorch module) becomes an ``onnx_ir.Model``."""
