"""The predictor: the one server of a model, on a laptop and in a KServe pod."""
