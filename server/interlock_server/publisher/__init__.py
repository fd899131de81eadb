"""The release engineer's side: builds, signs and publishes bundles. Nothing that listens imports it."""
