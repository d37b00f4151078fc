"""What notebooks 02 to 04 share: the settings they vary, the runs that vary them, and what those runs gave."""
