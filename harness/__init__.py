"""What every stage needs around its algorithm, and what no algorithm needs to know.

    settings.py   the settings that several stages share
    cli.py        a settings dataclass becomes a command line
    run.py        the run folder: logs, samples, checkpoints, exact resume
    ranks.py      several processes: accelerate, gathering, summing
    metrics.py    sums and counts of a step, divided once over all ranks
    plots.py      curves of a run, bars of an evaluation
    tables.py     the evaluation as lines of text
"""
