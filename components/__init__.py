"""Kubeflow Pipelines components that take a tabular model from features to production."""
