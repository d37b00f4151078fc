"""Figures: pure functions from data to a Plotly figure, for pages and notebooks alike."""
