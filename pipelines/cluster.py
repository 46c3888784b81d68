"""How a pipeline's steps are placed on a cluster: resources, retries, time limits and where configuration comes from.

All of it stands in the compiled YAML; the local runner ignores it. Every name is optional on the cluster: what a step
needs and does not find, it says itself. Mounted files are in ``KEYS_FOLDER``.

| kind | name | holds |
|---|---|---|
| ConfigMap | ``modelyard`` | ``MLFLOW_TRACKING_URI``, ``MODELYARD_MODEL_STORE`` and the rest of ``CONFIGURATION`` |
| ConfigMap | ``modelyard-verification`` | ``signing.pub`` or trusted certificates, mounted where models are verified |
| Secret | ``modelyard-signing`` | ``signing.pem``, ``signing.pub`` or ``MODELYARD_PKCS11_URI``, for ``sign_model`` alone |
| Secret | ``modelyard-storage`` | ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``; not needed with workload identity |
| Secret | ``modelyard-mlflow`` | ``MLFLOW_TRACKING_USERNAME``, ``MLFLOW_TRACKING_PASSWORD`` |
| Secret | ``modelyard-prometheus`` | ``MODELYARD_PROMETHEUS_TOKEN``, for a Prometheus that asks who is there |
| Secret | ``modelyard-wandb`` | ``WANDB_API_KEY`` |
"""

import os

from kfp import dsl, kubernetes

KEYS_FOLDER = "/var/run/secrets/modelyard"
CONFIGURATION = (
    "MLFLOW_TRACKING_URI",
    "MODELYARD_MODEL_STORE",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    # Where a rollout on KServe reads what both versions did.
    "MODELYARD_PROMETHEUS_URL",
    "MODELYARD_METRICS_SOURCE",
    # How models are signed and whose signatures count, where that is not an EC key: see modelyard.components.signing.
    "MODELYARD_SIGNING_CERTIFICATE",
    "MODELYARD_PKCS11_MODULES",
    "MODELYARD_IDENTITY_TOKEN_FILE",
    "MODELYARD_SIGSTORE_TRUST_CONFIG",
    "MODELYARD_TRUST",
    "MODELYARD_TRUSTED_CERTIFICATES",
    "MODELYARD_TRUSTED_IDENTITY",
    "MODELYARD_TRUSTED_ISSUER",
)


def place(
    task: dsl.PipelineTask, *, cpu: str, memory: str, minutes: int, retries: int = 2, cached: bool = False, gpu: bool = False
) -> dsl.PipelineTask:
    """Gives a step its share of a node, its time limit, its retries and the collection's configuration.

    Args:
        task: the step.
        cpu: cores it may use, such as "2".
        memory: memory it may use, such as "8G"; also what is reserved, so that a step is not evicted for what it was promised.
        minutes: after how long it is ended.
        retries: how often it is started again; every step is safe to repeat.
        cached: whether KFP may reuse an earlier result; only for steps whose inputs say all that matters.
        gpu: whether it gets one NVIDIA GPU.
    """
    task.set_cpu_request("500m").set_cpu_limit(cpu)
    task.set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(num_retries=retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    task.set_caching_options(cached)
    if gpu:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    kubernetes.set_timeout(task, minutes * 60)
    kubernetes.use_config_map_as_env(task, "modelyard", {name: name for name in CONFIGURATION}, optional=True)
    _secret_as_environment(task, "modelyard-storage", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    _secret_as_environment(task, "modelyard-mlflow", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    return task


def with_signing_key(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Mounts the private signing key; only the step that signs gets it."""
    _secret_as_environment(task, "modelyard-signing", "MODELYARD_PKCS11_URI")
    return kubernetes.use_secret_as_volume(task, "modelyard-signing", KEYS_FOLDER, optional=True)


def with_verification_key(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Mounts the public key that models are verified with."""
    return kubernetes.use_config_map_as_volume(task, "modelyard-verification", KEYS_FOLDER, optional=True)


def with_prometheus_token(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Passes the token for Prometheus to a step that watches live traffic."""
    _secret_as_environment(task, "modelyard-prometheus", "MODELYARD_PROMETHEUS_TOKEN")
    return task


def with_wandb_key(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Passes the Weights & Biases key to a step that may mirror a run there."""
    _secret_as_environment(task, "modelyard-wandb", "WANDB_API_KEY")
    return task


def with_node_images(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Tells a step that starts pods of its own whose images were compiled for it, where they are not this release's."""
    for name in ("MODELYARD_REGISTRY", "MODELYARD_TAG"):
        if value := os.environ.get(name):
            task.set_env_variable(name, value)
    return task


def _secret_as_environment(task: dsl.PipelineTask, secret: str, *names: str) -> None:
    kubernetes.use_secret_as_env(task, secret, {name: name for name in names}, optional=True)
