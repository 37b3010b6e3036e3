"""What was done to a model, and what it costs: tables for people."""
