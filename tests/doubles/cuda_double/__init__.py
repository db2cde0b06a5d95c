"""Doubles of the CUDA runtime and of TensorRT's runtime that compute on the CPU and enforce the rules of both."""
