"""Maintenance tools: pins, licences, audit, and tests on a GPU. Not part of the package."""
