"""The paper's tables and figures in the miniature world of ``bench.digits``, with error bars. See ``__main__``."""
