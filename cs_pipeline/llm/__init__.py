"""Language models: prompts, tokenizers, base models, loading and generation."""
