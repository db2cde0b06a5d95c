"""Contents of checkpoints, bundles and engine sets: blocks, shapes, parameters, FLOPs, layers and times."""
