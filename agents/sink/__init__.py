"""The sink: events of the log become rows of ClickHouse, each exactly once.

Owns batches, their intents, inserts and their repeats. Refuses to know what an event means, and
who reads the rows. The modules: `records` (a record's bytes -> a row's bytes, or a refusal),
`batches` (which records make a batch, which batches an insert), `inboxes` (which insert comes
next), `intents` (where a batch begins and ends, written down in the group's committed offsets),
`writer` (the loop: intents, insert, ack), `main` (the processes).
"""
