"""Signing models, and the one verification that everything which loads a model goes through.

A signed model directory is the payload that training wrote plus ``card/``, ``provenance.json`` (which model this is, and the
BLAKE3 digest of every file) and ``model.sig``: a Sigstore bundle by OpenSSF model-signing over all of it, which the upstream
command ``model_signing verify`` accepts. ``verification`` asks for more than upstream does, and is several times faster.

Who signs (the method is a parameter of ``sign_model``; paths and URIs come from the environment, secrets never from elsewhere):

| method | variables |
|---|---|
| ``key`` | ``MODELYARD_SIGNING_KEY`` (see ``settings``): an EC key, PEM, P-256, P-384 or P-521 |
| ``certificate`` | as ``key``; ``MODELYARD_SIGNING_CERTIFICATE``: its certificate, then intermediates, PEM |
| ``pkcs11`` | ``MODELYARD_PKCS11_URI``, PIN included; ``MODELYARD_PKCS11_MODULES``: their folder, if unusual |
| ``sigstore`` | ``MODELYARD_IDENTITY_TOKEN_FILE``, or ambient; ``MODELYARD_SIGSTORE_TRUST_CONFIG`` for a private one |

Whose signatures count (never anything that lies in the model's own directory):

| ``MODELYARD_TRUST`` | variables |
|---|---|
| ``key`` (default; also for ``pkcs11``) | ``MODELYARD_VERIFICATION_KEY`` (see ``settings``) |
| ``certificate`` | ``MODELYARD_TRUSTED_CERTIFICATES``: roots, PEM; ``MODELYARD_TRUSTED_IDENTITY``: the signer's subject name |
| ``sigstore`` | ``MODELYARD_TRUSTED_IDENTITY``, ``MODELYARD_TRUSTED_ISSUER``; ``MODELYARD_SIGSTORE_TRUST_CONFIG`` |
"""
