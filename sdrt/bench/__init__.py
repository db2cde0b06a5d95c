"""Benchmarks of engines: cold and warm, interleaved with peers, relative to the machine's ceiling; and tuning."""
