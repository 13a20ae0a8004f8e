"""When a schedule is due: instants of cron patterns and intervals, in any time zone.

Owns the arithmetic from a plan to its instants. Refuses to know the clock, where zone data is read
(it is handed in as a `Zone`), and what a due instant leads to. Instants are epoch milliseconds.
"""

from tidemill.schemas.native import prefer_compiled

prefer_compiled(__name__, __path__)
