"""Whole systems on Tidemill, each written as a user would write it.

Of ours they import `tidemill` alone. They run from a checkout and are not in the wheel.
"""
