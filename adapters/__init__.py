"""What an adapter is, whether a stranger's is safe to serve, where its bytes live, who may use it.

Imports neither torch, vLLM nor FastAPI: the other two rooms build on this one.
"""
