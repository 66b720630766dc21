"""Everything that knows torch and the checkpoints: files, tokens, prompts, and the forward passes."""
