"""Benchmarks: Tidemill and its peers, measured the same way on the same machine.

Kept apart from the tests: nothing here asserts anything about time.
"""
