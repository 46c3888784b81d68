"""The prediction log: what a predictor answered, kept as Parquet."""
