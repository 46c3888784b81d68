"""Experiments: two versions under the same traffic, compared once the labels have arrived."""
