"""Who is next, when to look again, and where a job goes: indices over a partition's jobs.

Owns order, timers, slots and wait lists. Refuses to decide about a job. Read `schedule` first.
"""

from tidemill.schemas.native import prefer_compiled

prefer_compiled(__name__, __path__)
