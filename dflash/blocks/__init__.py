"""Blocks: where drafts start (anchors), what each slot may see (mask), and what it has to predict (labels, decay)."""
