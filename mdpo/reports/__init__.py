"""What training and evaluation came to, on a page that one can send to somebody."""

from .compare import Comparison, compare
from .runs import Run, load_run
from .write import write_report

__all__ = ["Comparison", "Run", "compare", "load_run", "write_report"]
