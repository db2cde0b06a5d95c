"""Accuracy: pictures compared with their prompts, and engines compared with PyTorch."""
