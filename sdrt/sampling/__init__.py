"""Noise levels, the LMS sampler and latents: NumPy only, no model."""
