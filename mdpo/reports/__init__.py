"""What training and evaluation came to, on a page that one can send to somebody.

commands.py   mdpo report
runs.py       a run's folder: the Trainer's log and the evaluations in it
compare.py    runs side by side, and what changed against the first
examples.py   answers that changed most
charts.py     charts as SVG and PNG
style.py      the page's look
page.py       the HTML page
markdown.py   the same as Markdown
write.py      page, picture and Markdown together
"""

from .compare import Comparison, compare
from .runs import Run, load_run
from .write import write_report

__all__ = ["Comparison", "Run", "compare", "load_run", "write_report"]
