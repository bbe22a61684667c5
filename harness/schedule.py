"""The learning rate of a step: a warm-up, then constant or cosine."""

import math

import torch


def set_lr(optimizer: torch.optim.Optimizer, steps_done: int, cfg, num_steps: int) -> float:
    """Set the learning rate of the next step, and return it; `steps_done` is 0 before the first.

    GRPO counts rollouts: all updates of a rollout share one rate, so --updates_per_rollout does not
    change the schedule.
    """
    lr = learning_rate(steps_done, cfg, num_steps)
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr
    return lr


def learning_rate(steps_done: int, cfg, num_steps: int) -> float:
    """The rate of the next step, after s = `steps_done`; W = --warmup_steps.

        s < W                          lr (s + 1) / W
        s >= W, --schedule constant    lr
        s >= W, --schedule cosine      lr (0.1 + 0.9 (1 + cos(pi p)) / 2),
                                       p = (s - W) / (num_steps - W)

    The cosine falls from lr towards lr / 10, which the step after the last would have.

    Trap: the cosine depends on `num_steps`. If --resume makes a run longer, its rate jumps up
    (test_a_longer_run_has_another_cosine). Source: MM-EUREKA.
    """
    lr = cfg.lr * min(1.0, (steps_done + 1) / max(1, cfg.warmup_steps))
    if cfg.schedule == "cosine":
        progress = max(0, steps_done - cfg.warmup_steps) / max(1, num_steps - cfg.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))  # from 1 towards 0
        lr *= 0.1 + 0.9 * cosine
    return lr
