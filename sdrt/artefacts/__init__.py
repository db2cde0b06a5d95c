"""Manifests, bundles, engine sets and the store that keeps them."""
