"""Backends: what runs the engines of a set."""
