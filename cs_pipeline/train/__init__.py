"""Trains the embedded base model and the (Q)LoRA adapter."""
