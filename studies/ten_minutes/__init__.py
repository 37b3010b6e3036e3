"""How long the way from a fresh clone to a verified file takes."""
