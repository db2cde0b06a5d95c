"""What bundles and engine sets consist of."""
