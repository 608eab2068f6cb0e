"""What becomes of a run that is killed, and of input that was damaged or meant to do harm."""
