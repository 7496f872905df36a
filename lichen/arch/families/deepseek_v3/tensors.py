"""The multi-token-prediction layer shares the trunk's embedding and head (DeepSeek-V3, arXiv 2412.19437,
section 2.2); DeepSeek's checkpoint stores both again inside the layer, and vLLM reads them there."""

from lichen.arch.families.tensors import TensorNames

NAMES = TensorNames(mtp_copies={"embed_tokens.weight": "embedding", "shared_head.head.weight": "head"})
