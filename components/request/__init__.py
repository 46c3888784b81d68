"""What a person or a scheduler asks for, checked before anything expensive starts."""
