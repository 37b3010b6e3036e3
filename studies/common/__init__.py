"""What several studies share: networks and data."""
