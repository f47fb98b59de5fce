"""Is the adapter good, and what did it forget.

Owns questions about a model and their figures, each with its number of cases. Refuses
training. A proportion is never given without its interval.
"""
