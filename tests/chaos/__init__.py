"""Kills the engine's processes under load, then proves from the raw log that nothing was lost."""
