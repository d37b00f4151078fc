"""Sanity gates: most reports of a low tau elsewhere would have been caught by one of them.

`overfit` trains on one conversation until decoding accepts it, `leak` measures who sees whom, `layers` moves the
features by one layer. Each returns a report that says whether the gate is passed, and in words why not.
"""
