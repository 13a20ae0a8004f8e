"""Schedules in one partition: the rows of those at home here, who announces them, their ticks.

Owns what time and announcements do to schedules. Refuses to know the arithmetic of plans
(`tidemill.streams.occurrences`) and what becomes of a job that a tick asks for.
"""

from tidemill.schemas.native import prefer_compiled

prefer_compiled(__name__, __path__)
