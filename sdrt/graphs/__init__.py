"""ONNX graphs from elsewhere: read with distrust, in a process of their own, before any library opens them."""
