"""Damaged files by the thousand: `python -m tests.fuzz --files 5000 --output fuzz.json`; a short run is a test."""
