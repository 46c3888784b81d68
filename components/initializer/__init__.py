"""The storage initializer of a serving pod: fetches a model, and lets it pass only if it is signed and the one that was asked for."""
