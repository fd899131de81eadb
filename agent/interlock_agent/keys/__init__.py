"""The device's private key, where it is not in a file: for the agent, and for its fetcher."""

TPM2, PKCS11 = "tpm2", "pkcs11"  # OpenSSL's names of the providers
