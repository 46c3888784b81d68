"""The registry of released models: versions, the champion, and who challenges it."""
