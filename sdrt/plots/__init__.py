"""Figures of what each part of the model does, computed by the real engines."""
