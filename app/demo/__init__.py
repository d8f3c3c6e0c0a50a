"""The built-in upstream: an OpenAI-compatible server that needs no key and no network."""
