"""Schedules against brute force: the oracle, the short form and the whole check."""
