"""Signing models, and the one verification that everything which loads a model goes through."""
