"""Where models are served: the verbs that a rollout needs, and one folder for each place that offers them."""
