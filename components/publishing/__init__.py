"""Putting a signed model where serving clusters can fetch it."""
