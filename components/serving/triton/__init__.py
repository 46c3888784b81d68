"""Signed models as NVIDIA Triton serves them."""
