"""The paper's tables as data, the runner that fills them with runs, and the summary beside the paper's values.

python -m experiments.run TABLE
python -m experiments.summarize TABLE
"""
