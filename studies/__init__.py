"""Reproductions of the papers' tables on real data: config, command, result JSON, plot."""
