"""The serving target of a cluster: a KServe InferenceService, in Knative or in Standard mode."""
