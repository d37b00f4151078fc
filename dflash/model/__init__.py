"""The draft model: configuration, rotary embedding, dual-source attention, cache, folder form."""
