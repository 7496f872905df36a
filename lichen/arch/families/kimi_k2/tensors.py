"""Kimi K2's tensors have the names of DeepSeek-V3's."""

from lichen.arch.families.deepseek_v3.tensors import NAMES as NAMES
