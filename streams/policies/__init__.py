"""The rules of jobs, each in one module: who is let in, who may start, what a failure leads to.

Owns the rules. Refuses to know records, slots and the law: a policy answers questions and keeps
tables, `tidemill.streams.decisions` and the partition do what follows. Read `base` first, then
`registry`, which has them all.
"""

from tidemill.schemas.native import prefer_compiled

prefer_compiled(__name__, __path__)
