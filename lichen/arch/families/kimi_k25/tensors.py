"""Kimi K2.5 puts a text tower beside a vision tower, under three sets of names."""

from lichen.arch.families.deepseek_v3.tensors import NAMES as TOWER
from lichen.arch.families.tensors import TensorNames

VISION = ("vision_tower.*", "mm_projector.*", "model.vision_tower.*", "model.mm_projector.*")

NAMES = TensorNames(
    prefixes={
        "language_model.model.blocks.": "model.layers.",  # as transformers saves it
        "language_model.": "",  # as Moonshot publishes it
        "model.language_model.": "model.",  # as transformers holds it in memory
    },
    left_out=dict.fromkeys(VISION, "the vision tower"),
    mtp_copies=TOWER.mtp_copies,
)
