"""Accuracy: what a picture shows against what was asked, and one runtime against another."""
