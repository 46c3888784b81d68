"""The KFP interface of signing."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("ops")
def sign_model(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    card: dsl.Input[dsl.Markdown],
    card_html: dsl.Input[dsl.HTML],
    bom: dsl.Input[dsl.Artifact],
    signed_model: dsl.Output[dsl.Model],
    model_name: str,
    run_id: str = "",
    method: str = "key",
) -> NamedTuple("Outputs", [("digest", str), ("signer", str)]):
    """Signs a model that passed its evaluation.

    Copies the model, its card, its bill of materials and its evaluation into one folder, adds provenance.json (which model
    this is and where it came from) and model.sig, an OpenSSF model-signing signature over every file. Refuses a model that
    did not pass, or an evaluation of another model. Keys and identities come from the step's environment, never from here.

    Args:
        model: Model directory from a trainer.
        evaluation: evaluation.json from evaluate_model, of this very model.
        card: Model card from write_model_card, Markdown.
        card_html: The same card, HTML.
        bom: Bill of materials from write_model_card, CycloneDX JSON.
        model_name: Name of the registered model.
        run_id: MLflow run that trained it; empty if there is none.
        method: How to sign: key (an EC key), certificate, pkcs11 or sigstore.

    Returns:
        signed_model: Folder of the model with card/, provenance.json and model.sig.
        digest: The model's digest, which names this version everywhere.
        signer: Fingerprint of the signing key, or the name in the certificate.
    """
    from modelyard.components.signing.sign import sign_model as work

    provenance = work(
        model.path,
        evaluation=evaluation.path,
        card=card.path,
        card_html=card_html.path,
        bom=bom.path,
        signed_model=signed_model.path,
        model_name=model_name,
        run_id=run_id,
        method=method,
    )
    signed_model.metadata["digest"] = provenance.model_digest
    signed_model.metadata["signer"] = provenance.signer
    signed_model.metadata["model_name"] = model_name
    return (provenance.model_digest, provenance.signer)
