"""The groups of the command `interlock`: options in, one call into the publisher, words out."""
