"""Objectives: what a draft is trained towards, and the per-slot statistics that come with it."""
