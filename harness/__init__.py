"""What every stage needs around its algorithm: settings, a run folder, ranks, metrics, reports.

    settings.py     the settings that several stages share
    cli.py          a settings dataclass becomes a command line
    run.py          the run folder: logs, samples, checkpoints, exact resume
    ranks.py        several processes: accelerate, gathering, summing
    randomness.py   where every random number comes from
    reference_cache.py   log-probabilities of a frozen model, kept in a file
    metrics.py      means over completions, tokens or groups on all ranks
    tables.py       the report of an evaluation as lines of text
    plots.py        curves of a run, bars of an evaluation
"""
