"""The runtime under the Faust apps: chunks in, transactions out, restore, fail-stop.

Owns how bytes reach an agent and how they leave it; refuses to know what a job, a command or an
event is.
"""
