"""Language models: prompts, tokens, bases, and how a model is loaded and asked."""
