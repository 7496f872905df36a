"""From text files to batches: corpus -> tokenizer -> token shards -> packed batches. Each step resumes."""
