"""Where target features come from during training."""
