"""Long trainings as a list of data: each run checkpoints every epoch, resumes to the same bits, and leaves one JSON."""
