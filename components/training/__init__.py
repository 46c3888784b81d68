"""Trains tabular models: gradient-boosted trees with XGBoost, and a network with PyTorch."""
