"""Opening of ONNX Runtime, OpenVINO, TensorRT and CUDA, and translation of their errors."""
