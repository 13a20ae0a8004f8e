"""The worker: runs users' handlers and says what became of each attempt.

Owns handlers, slots, time-outs, outcomes and the worker's beat; refuses to know what happens to a
job between its attempts, which is the work of the ledger. Importing this package needs no Kafka.
"""
