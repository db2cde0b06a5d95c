"""Stand-ins of real things for tests: engines, CUDA, TensorRT."""
