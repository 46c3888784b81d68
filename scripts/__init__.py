"""The ``modelyard`` command and what it runs."""
