"""Lichen: describe, cost, train, export and run open models of the DeepSeek-V3 / Kimi K2 lineage."""

__version__ = "0.1.0"
