"""Runs: what the recipes do, from settings to a folder. The only room that imports accelerate.

May import: every other room. ``recipes/*.py`` call into it; ``accelerate launch -m rst_hub.runs.search`` is the same.
"""
