"""The paper's tables as data, the runner that fills them with runs, and the summary beside the paper's values."""
