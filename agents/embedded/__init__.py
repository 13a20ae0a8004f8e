"""A real Kafka on this machine without Docker and without an installed Java.

Owns: the pinned jars, the choice of a Java, and the life of one broker process.
Refuses to know: topics, jobs, and what the broker is used for.
"""
