"""Serving on this machine: predictor processes behind Envoy on 127.0.0.1, kept up by a supervisor."""
