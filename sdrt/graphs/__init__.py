"""Validation of untrusted ONNX graphs in a child process, before any library opens them."""
