"""Acceptance statistics and the paired benchmark of draft + target against the target alone."""
