"""AMBER's generative part (Wang et al. 2023, arXiv 2311.07397): CHAIR, Cover, Hal, Cog.

files.py     the official files and the responses, checked
metrics.py   the figures, as the official program computes them and corrected
run.py       mdpo evaluate amber
"""

from .metrics import AmberResponse, Similarity, problems, score

__all__ = ["AmberResponse", "Similarity", "problems", "score"]
