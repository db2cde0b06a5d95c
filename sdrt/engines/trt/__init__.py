"""The steps of a TensorRT build, for the modules tensorrt 10.16 to 11 and tensorrt_rtx 1.7.

Everything here uses only what all of them have (tests/engines/tensorrt_api holds the lists), except for `config`, where
they differ.
"""
