"""The champion at work: an API and a page for people and programs, and what they say of its answers."""
