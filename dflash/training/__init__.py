"""Training: schedule, optimizer, checkpoints, run folder and the trainer."""
