"""The paper in miniature: its claims, tested with seeds on the embedded world.

    python -m experiments             `make paper`: six experiments, at most 90 minutes on two cores
    python -m experiments --quick     `make paper-quick`: fewer seeds and questions, 15 minutes
    python -m experiments --more      `make paper-more`: what else the paper says, three seeds

    verdict.py       the rule: agrees, disagrees, cannot tell here
    claims.py        what the paper says, its numbers, and the quantity that each claim compares
    more_claims.py   the same for --more
    grid.py          which stages run for a seed, with which flags, on what they wait
    more_grid.py     the same for --more
    schedule.py      runs them, as many at a time as there are cores, and goes on where it stopped
    collect.py       run folders -> one small file, metrics.json
    figures.py       metrics.json -> figures
    choose_rates.py  the learning rate of each cold start, chosen on a development set -> rates.json

`--from_metrics FILE` prints the verdicts and draws the figures again from the small file alone.
"""
