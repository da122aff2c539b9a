"""The base model and the (Q)LoRA adapter."""
