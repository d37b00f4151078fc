"""Online training: SGLang servers capture the target's features, a Mooncake store carries them, trainer ranks pull."""
