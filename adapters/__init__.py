"""Adapters: what one is, whether it is safe to serve, where it lies and who may use it.

Owns artifacts, validation, the store and the registry. Refuses to train or to serve, and
imports neither torch, vLLM nor a web framework, so that both other rooms can stand on it.
"""
