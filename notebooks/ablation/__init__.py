"""What the notebooks share: the settings they vary, the runs that vary them, and what those runs gave."""

import warnings

# Bars are text here: notebooks need no widgets.
warnings.filterwarnings("ignore", message="IProgress not found")
