"""The storage initializer of a serving pod: fetches a model, which passes only if it is signed and the one asked for."""
