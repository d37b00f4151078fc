"""Plain and speculative decoding on one engine, with a trace of every step."""
