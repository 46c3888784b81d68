"""Pipelines wired from the components, compiled into ``compiled/``."""
