"""Rules on text, each in one place: placeholders, cleaning, personal data, poison, safety."""
