"""The steps of a TensorRT build, over whichever module is given: tensorrt 10.16 to 11, or tensorrt_rtx 1.7.

Everything here keeps to what all of them have (tests/engines/tensorrt_api holds the lists), save `config`, which says
where they differ.
"""
