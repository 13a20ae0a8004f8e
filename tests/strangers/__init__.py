"""Producers that know nothing of Tidemill: other partitioners, other languages, other formats."""
